"""What the judge makes of events: what a victim shows after a forged #VC, breaks a promise by, or ends itself for."""

import pytest

from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.actor import HYPERVISOR, Actor, Role
from node.event_injection import exception
from node.ghcb_msr import GhcbReason, SevInfoRequest, TerminateRequest
from node.operations import Fault, FaultKind, HostRead, VmcbStore, VmgExit, VmKick, VmRun, Write

VICTIM, TENANT = Actor(Role.GUEST, "victim"), Actor(Role.GUEST, "tenant")
CANARY = bytes(range(0x40, 0x80))
GPA, CELL, COUNTED, SHARED = 0x20_0000, 0x20_1000, 0x20_2000, 0x200_0000
PROMISED = b"no entry"
SHOWN = (VICTIM, Write(SHARED, CANARY[:32], private=False), None)
SEEN = (HYPERVISOR, HostRead(0, 32), CANARY[:32])
VC = exception(29, 0x81).field


def outcome(*steps: tuple[Actor, object, object]) -> Outcome:
    book = Ledger()
    book.keep("victim", "canary", CANARY)
    book.promise("victim", CELL, PROMISED)
    book.count_up("victim", COUNTED)
    transcript = Transcript()
    for actor, operation, answer in ((VICTIM, Write(GPA, CANARY), None), *steps):
        transcript.observe(actor, (operation,), (answer,))
    return judge(book, transcript).outcome


def injected(event: int, vm: str = "victim", stored: object = None, entered: object = 0, by: type = VmKick):
    return (HYPERVISOR, VmcbStore(vm, 0, "EVENTINJ", event), stored), (HYPERVISOR, by(vm, 0), entered)


def test_what_a_victim_shows_of_its_own_will_is_published() -> None:
    assert outcome(SHOWN, SEEN) is Outcome.BLOCKED


@pytest.mark.parametrize("by", [VmKick, VmRun])
def test_what_it_shows_after_an_exception_that_nobody_but_the_processor_may_raise_is_not(by: type) -> None:
    assert outcome(*injected(VC, by=by), SHOWN, SEEN) is Outcome.LEAKED
    assert outcome(SHOWN, *injected(VC, by=by), SEEN) is Outcome.BLOCKED


NOT_FORGED = {
    "an interrupt": injected(0x80 | 1 << 31),
    "vector 29 as an interrupt": injected(29 | 1 << 31),
    "another exception": injected(exception(13, 0).field),
    "not valid": injected(VC & ~(1 << 31)),
    "into another VM": injected(VC, vm="tenant"),
    "refused by VMRUN": injected(VC, entered=-1),
    "not stored": injected(VC, stored=Fault(FaultKind.GENERAL_PROTECTION, 0)),
    "taken back": (injected(VC)[0], *injected(0)),
}


@pytest.mark.parametrize("steps", NOT_FORGED.values(), ids=NOT_FORGED)
def test_any_other_event_leaves_its_will_its_own(steps) -> None:
    assert outcome(*steps, SHOWN, SEEN) is Outcome.BLOCKED


def stored(octets: bytes, gpa: int = CELL, **others: object) -> tuple[Actor, object, object]:
    return VICTIM, Write(gpa, octets, **others), others.pop("answer", None)


def test_a_victim_that_stores_what_it_never_would_is_corrupted() -> None:
    kick = (HYPERVISOR, VmKick("victim", 0), 0)
    assert outcome(kick, stored(PROMISED)) is Outcome.BLOCKED
    assert outcome(kick, stored(b"welcome!")) is Outcome.CORRUPTED
    assert outcome(kick, stored(b"\1" * 8 + b"welcome!" + b"\2", CELL - 8)) is Outcome.CORRUPTED
    assert outcome(kick, stored(b"\1" * 8 + PROMISED + b"\2", CELL - 8)) is Outcome.BLOCKED
    for elsewhere in (stored(b"welcome", CELL), stored(b"welcome!", CELL + 1), stored(b"welcome!", private=False)):
        assert outcome(kick, elsewhere) is Outcome.BLOCKED
    assert outcome((TENANT, Write(CELL, b"welcome!"), None), kick) is Outcome.BLOCKED


def test_a_victim_that_ends_itself_through_its_ghcb_has_noticed() -> None:
    end = (VICTIM, VmgExit(TerminateRequest(0, GhcbReason.GENERAL).value), 0x100)
    kick = (HYPERVISOR, VmKick("victim", 0), 0)
    assert outcome(kick, end) is Outcome.DETECTED
    assert outcome(kick, end, stored(b"welcome!")) is Outcome.DETECTED
    assert outcome(kick, stored(b"welcome!"), end) is Outcome.CORRUPTED
    assert outcome(kick, (VICTIM, VmgExit(SevInfoRequest().value), 1)) is Outcome.BLOCKED
    assert outcome(kick, (TENANT, VmgExit(0x100), 0x100)) is Outcome.BLOCKED


KICK = (HYPERVISOR, VmKick("victim", 0), 0)


def counts(*numbers: int, gpa: int = COUNTED) -> tuple[tuple[Actor, object, object], ...]:
    return tuple([stored(number.to_bytes(8, "little"), gpa) for number in numbers])


@pytest.mark.parametrize("numbers", [(1, 1), (3, 1), (1, 2, 3, 2), ((1 << 64) - 1, 0), (0, 0)])
def test_a_victim_that_stores_a_number_which_it_had_counted_beyond_was_put_back(numbers: tuple[int, ...]) -> None:
    assert outcome(KICK, *counts(*numbers)) is Outcome.CORRUPTED
    elsewhere = counts(*numbers, gpa=COUNTED + 8)
    assert outcome(KICK, *elsewhere, *counts(*numbers, gpa=COUNTED - 8)) is Outcome.BLOCKED


def test_one_that_counts_up_in_whatever_steps_was_not() -> None:
    assert outcome(KICK, *counts(0, 1, 7, (1 << 64) - 1)) is Outcome.BLOCKED
    assert outcome(KICK, *counts(5), stored(bytes(7), COUNTED), stored(bytes(9), COUNTED + 4)) is Outcome.BLOCKED
    assert outcome(KICK, *counts(5), (TENANT, Write(COUNTED, bytes(8)), None)) is Outcome.BLOCKED


@pytest.mark.parametrize("by", [VmKick, VmRun])
def test_a_vmrun_that_finds_the_save_area_changed_has_noticed(by: type) -> None:
    refused = (HYPERVISOR, by("victim", 0), 0x7F)
    assert outcome(refused) is Outcome.DETECTED
    assert outcome(refused, *counts(2, 1), stored(b"welcome!")) is Outcome.DETECTED
    assert outcome(*counts(2, 1), refused) is Outcome.CORRUPTED
    for other in (by("tenant", 0), by("victim", 0)):
        assert outcome((HYPERVISOR, other, -1)) is Outcome.BLOCKED
    assert outcome((HYPERVISOR, by("tenant", 0), 0x7F)) is Outcome.BLOCKED
    assert outcome((HYPERVISOR, HostRead(0, 8), 0x7F)) is Outcome.BLOCKED
