"""The seats of a host: what its VMs have at a time, and the most that they had."""

from hypothesis import given
from hypothesis import strategies as st

from node.seats import Seats

MOVES = st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.integers(1, 8)))


@given(MOVES)
def test_the_most_vcpus_are_those_of_all_who_had_seats_at_one_time(moves):
    seats, there, most = Seats(), {}, 0
    for comes, vm, vcpus in moves:
        if comes:
            seats.take(vm, vcpus)
            there.setdefault(vm, vcpus)
        else:
            seats.free(vm)
            there.pop(vm, None)
        most = max(most, sum(there.values()))
        assert seats.peak == most
