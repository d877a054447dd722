"""What the judge makes of guessed decisions, of a victim that does not go on, and of its virtual addresses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.oracle.holdings import Measure
from cluster.oracle.ledger import CannotFollow, Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.actor import HYPERVISOR, Actor, Role
from node.operations import Fetch, HostRead, HostWrite, Read, VirtualRead, VirtualWrite, Write

VICTIM, SIBLING = Actor(Role.GUEST, "victim"), Actor(Role.GUEST, "victim", 1)
BITS = (1, 0, 0, 1, 1, 0, 1, 0) * 4
N = Measure().side_channel_bits
GVA, GPA, OTHER = 0x7F00_0000_1000, 0x20_0000, 0x20_1000
CANARY = bytes(range(64))


def ledger() -> Ledger:
    book = Ledger()
    book.keep("victim", "canary", CANARY)
    book.decide("victim", BITS)
    book.map("victim", 0, GVA, 4096, GPA)
    book.map("victim", 1, GVA, 4096, OTHER)
    return book


def heard(*steps: tuple[Actor, object, object]) -> Transcript:
    transcript = Transcript()
    for actor, operation, answer in ((HYPERVISOR, HostWrite(0, b"\0"), None), *steps):
        transcript.observe(actor, (operation,), (answer,))
    return transcript


def guessed(bits: Sequence[int]) -> Outcome:
    transcript = heard()
    transcript.guess(tuple(bits))
    return judge(ledger(), transcript).outcome


def flipped(*positions: int) -> list[int]:
    return [bit ^ (number in positions) for number, bit in enumerate(BITS)]


def test_many_more_right_guesses_than_wrong_are_a_side_channel() -> None:
    assert guessed(BITS[:N]) is Outcome.SIDE_CHANNEL
    assert guessed(flipped(3, 9, 20)) is Outcome.SIDE_CHANNEL


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (CANARY, Outcome.LEAKED),
        (bytes(5) + CANARY[24:40], Outcome.LEAKED),
        (CANARY[:15], Outcome.BLOCKED),  # less than makes a leak
        (bytes(64), Outcome.BLOCKED),
        (bytes(reversed(CANARY)), Outcome.BLOCKED),
    ],
)
def test_whoever_concludes_a_secret_holds_it(octets: bytes, expected: Outcome) -> None:
    transcript = heard()
    transcript.concluded(octets)
    assert judge(ledger(), transcript).outcome is expected


def test_a_conclusion_that_everybody_could_draw_is_no_leak() -> None:
    transcript = heard((VICTIM, Write(0x9000, CANARY, private=False), None))
    transcript.concluded(CANARY)
    assert judge(ledger(), transcript).outcome is Outcome.BLOCKED


@pytest.mark.parametrize(
    "bits", [(), BITS[: N - 1], [0] * 32, [1] * 32, flipped(*range(9)), flipped(*range(32)), BITS[1:] + BITS[:1]]
)
def test_what_chance_would_guess_is_none(bits: Sequence[int]) -> None:
    assert guessed(bits) is Outcome.BLOCKED


def test_guesses_beyond_what_is_known_count_for_nothing() -> None:
    assert guessed((0,) * 32 + (1,) * 1000) is Outcome.BLOCKED


def test_a_leak_and_corruption_are_worse() -> None:
    leaked = heard((HYPERVISOR, HostRead(0, 64), CANARY))
    leaked.guess(BITS)
    assert judge(ledger(), leaked).outcome is Outcome.LEAKED
    corrupted = heard((VICTIM, Write(GPA, b"mine"), None), (VICTIM, Read(GPA, 4), b"evil"))
    corrupted.guess(BITS)
    assert judge(ledger(), corrupted).outcome is Outcome.CORRUPTED


def test_a_victim_that_does_not_come_to_rest_is_denied_service_until_it_goes_on() -> None:
    transcript = heard()
    transcript.stalled("tenant")
    assert judge(ledger(), transcript).outcome is Outcome.BLOCKED
    transcript.stalled("victim")
    assert judge(ledger(), transcript).outcome is Outcome.DOS
    transcript.observe(VICTIM, (Write(GPA, b"mine"),), (None,))
    assert judge(ledger(), transcript).outcome is Outcome.BLOCKED


# By virtual address.


def outcome(*steps: tuple[Actor, object, object]) -> Outcome:
    return judge(ledger(), heard(*steps)).outcome


@pytest.mark.parametrize("load", [VirtualRead, Fetch])
def test_a_victim_is_followed_where_its_own_tables_lead(load: type) -> None:
    stored = (VICTIM, VirtualWrite(GVA + 16, b"mine"), None)
    assert outcome(stored, (VICTIM, load(GVA + 16, 4), b"mine")) is Outcome.BLOCKED
    assert outcome(stored, (VICTIM, load(GVA + 16, 4), b"evil")) is Outcome.CORRUPTED
    assert outcome(stored, (VICTIM, Read(GPA + 16, 4), b"evil")) is Outcome.CORRUPTED
    assert outcome((VICTIM, Write(GPA, b"mine"), None), (VICTIM, load(GVA, 4), b"evil")) is Outcome.CORRUPTED


def test_the_same_address_of_another_vcpu_is_other_memory() -> None:
    both = (VICTIM, VirtualWrite(GVA, b"mine"), None), (SIBLING, VirtualWrite(GVA, b"hers"), None)
    assert outcome(*both, (VICTIM, VirtualRead(GVA, 4), b"mine")) is Outcome.BLOCKED
    assert outcome(*both, (SIBLING, VirtualRead(GVA, 4), b"hers")) is Outcome.BLOCKED
    assert outcome(*both, (SIBLING, VirtualRead(GVA, 4), b"mine")) is Outcome.CORRUPTED


@pytest.mark.parametrize(
    "one", [VirtualRead(GVA + 4092, 8), VirtualRead(GVA - 1, 2), VirtualWrite(GVA + 4096, b"x"), Fetch(0, 1)]
)
def test_of_other_addresses_nobody_can_tell(one: object) -> None:
    with pytest.raises(CannotFollow):
        outcome((VICTIM, one, bytes(8)))


def test_a_vcpu_is_no_actor_of_its_own() -> None:
    assert SIBLING == VICTIM
    assert len({SIBLING, VICTIM}) == 1
