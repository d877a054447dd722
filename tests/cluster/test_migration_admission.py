"""No host and no fleet has more migrations than it may; nobody waits for ever."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.migration_admission import Admission

HOSTS = "abcde"


def test_without_limits_all_begin_at_once():
    admission = Admission(0, 0)
    assert all(admission.ask(number, "a", "b") for number in range(100))


def test_who_waits_for_a_busy_host_does_not_hold_up_others():
    admission = Admission(1, 0)
    assert admission.ask(1, "a", "b")
    assert not admission.ask(2, "a", "c")
    assert admission.ask(3, "c", "d")
    assert admission.release("c", "d") == []
    assert admission.release("a", "b") == [2]


def test_the_oldest_goes_first():
    admission = Admission(0, 2)
    assert [admission.ask(number, "a", "b") for number in range(1, 5)] == [True, True, False, False]
    assert admission.release("a", "b") == [3]
    assert admission.release("a", "b") == [4]


def test_the_oldest_goes_first_whichever_host_it_waited_for():
    admission = Admission(1, 1)
    asked = [admission.ask(number, *hosts) for number, hosts in ((1, "ab"), (2, "bc"), (3, "ad"))]
    assert asked == [True, False, False]
    assert admission.release("a", "b") == [2]


def test_one_that_is_not_wanted_any_more_is_never_named():
    admission = Admission(1, 0)
    admission.ask(1, "a", "b")
    admission.ask(2, "a", "c")
    admission.ask(3, "a", "c")
    admission.forget(2)
    assert admission.release("a", "b") == [3]


PAIRS = st.tuples(st.sampled_from(HOSTS), st.sampled_from(HOSTS)).filter(lambda pair: pair[0] != pair[1])


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(PAIRS, max_size=40), per_host=st.integers(1, 3), per_fleet=st.integers(0, 4), seed=st.randoms())
def test_limits_hold_nothing_that_could_run_waits_and_all_get_their_turn(pairs, per_host, per_fleet, seed):
    admission = Admission(per_host, per_fleet)
    active, waiting, done = {}, {}, []

    def check():
        for host in HOSTS:
            assert sum(host in pair for pair in active.values()) <= per_host
        assert not per_fleet or len(active) <= per_fleet
        for pair in waiting.values():
            busy = any(sum(host in one for one in active.values()) >= per_host for host in pair)
            assert busy or len(active) == per_fleet

    todo = dict(enumerate(pairs))
    while todo or active:
        if todo and (not active or seed.random() < 0.6):
            number = min(todo)
            pair = todo.pop(number)
            (active if admission.ask(number, *pair) else waiting)[number] = pair
        elif waiting and seed.random() < 0.2:
            number = seed.choice(sorted(waiting))
            admission.forget(number)
            done.append(number)
            del waiting[number]
        else:
            number = seed.choice(sorted(active))
            pair = active.pop(number)
            done.append(number)
            for admitted in admission.release(*pair):
                active[admitted] = waiting.pop(admitted)
                older = [number for number, one in waiting.items() if one == active[admitted] and number < admitted]
                assert not older, "an older one for the same hosts"
        check()
    assert sorted(done) == list(range(len(pairs)))
