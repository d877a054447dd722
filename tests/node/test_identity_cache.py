"""Results are found again by which object it is, and are always those of that object."""

from node.identity_cache import MOST_KEPT, MOST_RECORDS, IdentityCache, RecordsById


def test_one_object_is_worked_out_once_and_an_equal_other_gets_the_same():
    asked = []
    cache = IdentityCache(lambda key: asked.append(key) or sum(key))
    one, other = (1, 2, 3), tuple(range(1, 4))
    assert [cache(one), cache(one), cache(other)] == [6, 6, 6]
    assert len(asked) == 2


def test_objects_that_come_and_go_never_get_each_other_s_results():
    cache = IdentityCache(len)
    for size in [*range(3 * MOST_KEPT), *range(50)]:
        assert cache(list(range(size % 70))) == size % 70


def test_no_more_than_so_many_are_kept_alive():
    cache = IdentityCache(len)
    for size in range(3 * MOST_KEPT):
        cache([size])
    assert len(cache._kept) <= MOST_KEPT


def test_a_record_is_its_object_s_latest_and_keeps_that_alive():
    records = RecordsById()
    one, other = [1], [1]
    assert records.keep((one, "a")) == records[id(one)] == (one, "a")
    assert id(other) not in records
    records.keep((one, "b"))
    assert list(records.values()) == [(one, "b")]
    for number in range(1000):
        records.keep(([number], number))  # None gets the identity of one that is gone.
    assert len(records) == 1001
    assert records[id(one)][0] is one


def test_no_more_records_than_so_many_are_kept_alive():
    records = RecordsById()
    for number in range(MOST_RECORDS + 10):
        records.keep(([number], number))
    assert len(records) == 10
