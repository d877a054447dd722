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
    assert world.store.earliest_output_ns == NEVER_NS
    world.run(5)
    assert world.store.fetch() == b""
    world.store.want()
    world.store.want()
    assert world.store.earliest_output_ns == 5
    world.run(6)
    assert (world.times, world.store.earliest_output_ns, world.store.wanted_ns) == ([5], NEVER_NS, 5)


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
        due = world.store.earliest_output_ns
        # Twice as much at most for each time before, ten doublings at most.
        assert now + wait <= due <= now + wait * (1 << min(number, 10))
        world.run(due + 1)
        now = due + 1
        assert world.times[-1] == due
    assert (world.store.asked, world.store.refused) == (len(waits) + 1, len(waits))
