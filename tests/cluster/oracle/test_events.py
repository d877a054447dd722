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
GPA, CELL, SHARED = 0x20_0000, 0x20_1000, 0x200_0000
PROMISED = b"no entry"
SHOWN = (VICTIM, Write(SHARED, CANARY[:32], private=False), None)
SEEN = (HYPERVISOR, HostRead(0, 32), CANARY[:32])
VC = exception(29, 0x81).field


def outcome(*steps: tuple[Actor, object, object]) -> Outcome:
    book = Ledger()
    book.keep("victim", "canary", CANARY)
    book.promise("victim", CELL, PROMISED)
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
