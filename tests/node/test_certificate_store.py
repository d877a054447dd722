"""A host asks for its certificates once a guest needs them, and again only when it was told to, or later."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.certificate_store import CertificateStore
from node.clock import Clock
from node.contention import NEVER_NS

S = 1_000_000_000


class World:
    """A store, when it asked, and how often its table was made."""

    def __init__(self, share=0.0):
        self.clock, self.times, self.made = Clock(), [], 0
        self.store = CertificateStore(
            self.clock, lambda: self.times.append(self.clock.now_ns), self.make, lambda _: share
        )

    def make(self):
        self.made += 1
        return b"table"

    def run(self, until_ns):
        self.clock.env.run(until=until_ns)


def test_nothing_is_asked_for_or_promised_before_a_guest_comes_and_only_once_for_all():
    world = World()
    assert world.store.earliest_output_ns(NEVER_NS) == NEVER_NS
    world.run(5)
    assert world.store.fetch() == b""
    world.store.want()
    world.store.want()
    assert world.store.earliest_output_ns(NEVER_NS) == 5
    world.run(6)
    assert (world.times, world.store.earliest_output_ns(NEVER_NS), world.store.wanted_ns) == ([5], NEVER_NS, 5)


def test_the_table_is_made_when_a_guest_first_wants_it():
    world = World()
    world.store.want()
    world.run(9)
    assert (world.store.fetch(), world.made) == (b"", 0)
    world.store.answered(None)
    assert (world.made, world.store.held_ns) == (0, 9)
    assert (world.store.fetch(), world.store.fetch(), world.made) == (b"table", b"table", 1)


@given(st.lists(st.integers(1, 60 * S), min_size=1, max_size=14), st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_it_comes_again_no_sooner_than_it_was_told_and_says_before_when_that_is(waits, share):
    world = World(share)
    world.store.want()
    now = 1
    world.run(now)
    for number, wait in enumerate(waits, 1):
        world.store.answered(wait)
        due = world.store.earliest_output_ns(NEVER_NS)
        # Twice as much at most for each time before, ten doublings at most.
        assert now + wait <= due <= now + wait * (1 << min(number, 10))
        world.run(due + 1)
        now = due + 1
        assert world.times[-1] == due
    assert (world.store.asked, world.store.refused) == (len(waits) + 1, len(waits))


def renewed(world):
    world.store.ordered()
    world.store.carried_out(other_tcb=True)


def test_what_is_of_another_tcb_is_thrown_away_and_fetched_anew():
    world = World()
    world.store.want()
    world.run(5)
    world.store.answered(None)
    assert world.store.fetch() == b"table"
    world.store.ordered()
    assert world.store.earliest_output_ns(7) == 7, "it may be carried out then"
    world.store.carried_out(other_tcb=False)
    assert (world.store.earliest_output_ns(7), world.store.fetch()) == (NEVER_NS, b"table")
    renewed(world)
    assert (world.store.fetch(), world.store.earliest_output_ns(7)) == (b"", 5)
    world.run(9)
    world.store.answered(None)
    assert (world.store.fetch(), world.made, world.times, world.store.held_ns) == (b"table", 2, [0, 5], 5)


def test_an_answer_to_what_was_asked_before_counts_for_nothing():
    world = World()
    world.store.want()
    world.run(5)
    renewed(world)
    world.store.answered(None)
    assert world.store.fetch() == b""
    world.run(9)
    world.store.answered(None)
    assert (world.store.fetch(), world.times, world.made) == (b"table", [0, 5], 1)


def test_who_was_told_to_come_again_comes_then_and_not_sooner():
    world = World()
    world.store.want()
    world.run(5)
    world.store.answered(10)
    renewed(world)
    renewed(world)
    assert world.store.earliest_output_ns(NEVER_NS) == 15
    world.run(20)
    assert world.times == [0, 15]


def test_a_host_without_guests_that_attest_fetches_nothing_anew():
    world = World()
    renewed(world)
    assert (world.store.earliest_output_ns(5), world.store.renewed) == (NEVER_NS, 0)
    world.store.ordered()
    assert world.store.earliest_output_ns(5) == NEVER_NS
