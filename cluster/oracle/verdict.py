"""The verdict on an attack, from ledger and transcript alone.

Everybody but the victim is an adversary. Outcomes, from the strongest to the
weakest that fits:

leaked
    somebody else holds enough bytes of a secret that its victim did not publish (to hand it to a device is not to),
    in data or in the integers of an answer or a fault, or has concluded them: whoever is
    right about so many had them from somewhere;
corrupted
    a victim read something else than its last write, or stored something else than it
    ever would, be it a number that it had counted beyond, and no exception in the guest
    and no party that it trusts had complained before;
    or firmware did anew what a guest had asked it for once;
side channel
    somebody guessed many more of a victim's decisions right than chance would;
detected
    such a complaint came, be it that the victim ended itself through its GHCB, that VMRUN found its
    save area changed, that its migration agent does not believe a peer, or that firmware finds the
    tag of a page wrong that comes in for a guest which an agent brought;
blocked
    an operation was refused or a victim's access was stopped without data, or
    the attack got through and brought nothing but garbage;
dos
    nothing of this, but a victim stopped, or could not go on;
not applicable
    nothing of all this, and the laboratory found the interface absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.oracle.carried_messages import CarriedMessages
from cluster.oracle.holdings import Holdings, Measure
from cluster.oracle.ledger import Discrepancy, Ledger
from cluster.oracle.moved_guests import MovedGuests, refused_by_agent
from cluster.oracle.transcript import CODED, Absence, Complaint, Conclusion, Entry, Guess, Stall, Transcript, told_by
from node.actor import HYPERVISOR, Actor
from node.event_injection import Event, ExceptionVector, exception
from node.ghcb_msr import GhcbMsrError, TerminateRequest, parse_request
from node.operations import (
    AgentCall,
    Answer,
    Copy,
    Fault,
    FaultKind,
    PSmash,
    PspAnswer,
    PValidate,
    PValidateResult,
    RmpQueryResult,
    RmpReadResult,
    VmcbStore,
    VmgExit,
    VmKick,
    VmRun,
    Write,
)
from node.vmexit import ExitCode
from psp.status import Status


class Outcome(StrEnum):
    """What an attack came to, from the strongest to the weakest."""

    LEAKED = "leaked"
    CORRUPTED = "corrupted"
    SIDE_CHANNEL = "side_channel"
    DETECTED = "detected"
    BLOCKED = "blocked"
    DOS = "dos"
    NOT_APPLICABLE = "not_applicable"


class NothingTried(Exception):
    """Nobody but the victims did anything, nor was an interface looked for in vain: there is nothing to judge."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What an attacker set out to make a victim read. Corruption that does not reach it counts for nothing.

    For attacks that are defined by a chosen value, where garbage is another attack.
    """

    victim: str
    gpa: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, and what in the transcript it rests on."""

    outcome: Outcome
    evidence: str


def judge(
    ledger: Ledger, transcript: Transcript, measure: Measure = Measure(), aim: Aim | None = None  # noqa: B008  # frozen
) -> Verdict:
    """The strongest outcome that fits any victim. Raises NothingTried, CannotFollow."""
    tried = [
        one
        for one in transcript.entries
        if isinstance(one, Absence) or (isinstance(one, Entry) and not ledger.is_victim(one.actor))
    ]
    if not tried:
        raise NothingTried
    found = [_Case(ledger, victim, measure, aim).hear(transcript) for victim in ledger.victims]
    order = list(Outcome)
    return min(found, key=lambda verdict: order.index(verdict.outcome))


class _Case:
    """One victim, followed through the transcript."""

    def __init__(self, ledger: Ledger, victim: str, measure: Measure, aim: Aim | None) -> None:
        self._ledger = ledger
        self._victim = victim
        self._measure = measure
        self._aim = aim if aim is not None and aim.victim == victim else None
        self._only_aim = aim is not None
        self._shadow = ledger.shadow(victim)
        self._holdings = [Holdings(one, measure) for one in ledger.secrets(victim)]
        self._promises = ledger.promises(victim)
        self._counters: dict[int, int] = dict.fromkeys(ledger.counters(victim), -1)
        self._armed = False
        self._complaints: dict[int | None, str] = {}
        """By GPA; None where no page is named."""
        self._decisions = ledger.decisions(victim)
        self._messages = CarriedMessages()
        self._moved = MovedGuests()
        self._corrupted = ""
        self._guessed = ""
        self._refused = ""
        self._stopped = ""
        self._absent = ""

    def hear(self, transcript: Transcript) -> Verdict:
        """The verdict for this victim."""
        for one in transcript.entries:
            if isinstance(one, Complaint):
                if one.victim == self._victim:
                    self._complaints.setdefault(None, one.reason)
            elif isinstance(one, Guess):
                self._compare(one.bits)
            elif isinstance(one, Conclusion):
                for secret in self._holdings:
                    secret.reached(HYPERVISOR, Conclusion, one.octets)
            elif isinstance(one, Stall):
                if one.victim == self._victim:
                    self._stopped = f"{self._victim} did not go on"
            elif isinstance(one, Absence):
                self._absent = self._absent or f"no {one.interface}"
            elif isinstance(one, Entry):
                if one.actor.name == self._victim and self._ledger.is_victim(one.actor):
                    self._follow_victim(one)
                else:
                    self._follow_adversary(one)
        return self._conclude()

    def _conclude(self) -> Verdict:
        for secret in self._holdings:
            if len(secret.held) >= self._measure.leak_bytes:
                return Verdict(Outcome.LEAKED, f"{len(secret.held)} bytes of {secret.name} of {self._victim}")
        if self._corrupted:
            return Verdict(Outcome.CORRUPTED, self._corrupted)
        if self._guessed:
            return Verdict(Outcome.SIDE_CHANNEL, self._guessed)
        if self._complaints:
            return Verdict(Outcome.DETECTED, next(iter(self._complaints.values())))
        if self._refused:
            return Verdict(Outcome.BLOCKED, self._refused)
        if self._stopped:
            return Verdict(Outcome.DOS, self._stopped)
        if self._absent:
            return Verdict(Outcome.NOT_APPLICABLE, self._absent)
        return Verdict(Outcome.BLOCKED, "nothing but garbage")

    def _compare(self, bits: tuple[int, ...]) -> None:
        known = self._decisions[: len(bits)]
        right = sum(one == other for one, other in zip(bits, known, strict=False))
        if right - (len(known) - right) >= self._measure.side_channel_bits:
            self._guessed = f"{right} of {len(known)} decisions of {self._victim} guessed right"

    def _follow_adversary(self, entry: Entry) -> None:
        self._tell(entry.actor, entry)
        self._refused = self._refused or _refusal(entry)
        self._notice_forgery(entry.operation, entry.answer)
        if _finds_save_area_changed(entry, self._victim):
            self._complaints.setdefault(None, f"VMRUN found the save area of {self._victim} changed")
        guest, what = self._moved.noticed(entry.operation, entry.answer)
        if guest == self._victim:
            self._complaints.setdefault(None, what)
        if not self._only_aim:
            self._corrupted = self._corrupted or self._messages.follow(entry.operation, entry.answer)

    def _notice_forgery(self, one: object, answer: Answer) -> None:
        """#VC is the processor's to raise: what a victim shows after one that was injected is not shown of its will."""
        if isinstance(one, VmcbStore) and (one.vm, one.field) == (self._victim, "EVENTINJ"):
            event = Event.of(one.value)
            self._armed = answer is None and event == exception(ExceptionVector.VC, event.error if event else None)
        elif isinstance(one, VmKick | VmRun) and one.vm == self._victim and answer == 0 and self._armed:
            self._armed = False
            for secret in self._holdings:
                secret.misread(secret.octets)

    def _tell(self, party: Actor, entry: Entry) -> None:
        for channel, octets in told_by(entry):
            for secret in self._holdings:
                secret.reached(party, channel, octets)

    def _follow_victim(self, entry: Entry) -> None:
        one, answer = entry.operation, entry.answer
        if isinstance(answer, Fault):
            if answer.kind in _EXITS:
                self._tell(HYPERVISOR, entry)
            self._stopped = f"{self._victim} stopped: {answer.kind.name} at {answer.address:#x}"
            if answer.kind is FaultKind.PAGE_NOT_VALIDATED:
                self._complaints.setdefault(answer.address, f"#VC in {self._victim} at {answer.address:#x}")
            elif answer.kind is FaultKind.RMP_FAULT:
                self._refused = self._refused or f"nested fault of {self._victim} at {answer.address:#x}"
            return
        self._stopped = ""
        wrong = self._shadow.follow(one, answer, entry.actor.vcpu)
        if wrong is not None:
            self._misread(wrong)
        elif isinstance(one, Write) and not one.private:
            self._publish(one.gpa, one.data)
        elif isinstance(one, Write):
            self._hold_to_promises(one)
            self._hold_to_counters(one)
        elif isinstance(one, VmgExit) and _ends(one.msr):
            self._complaints.setdefault(None, f"{self._victim} ended itself: {one.msr:#x}")
        elif isinstance(one, Copy) and not one.target_private and isinstance(answer, bytes):
            self._publish(one.target, answer)
        elif isinstance(one, PValidate) and isinstance(answer, PValidateResult) and one.validate and answer.code == 0:
            self._wave_away(one)

    def _publish(self, gpa: int, octets: bytes) -> None:
        if self._ledger.is_entrusted(self._victim, gpa, len(octets)):
            return
        for secret in self._holdings:
            secret.published(octets)

    def _hold_to_promises(self, one: Write) -> None:
        for gpa, octets in self._promises.items():
            first = gpa - one.gpa
            stored = one.data[first : first + len(octets)] if first >= 0 else b""
            if len(stored) == len(octets) and stored != octets and not self._complaints and not self._only_aim:
                self._corrupted = self._corrupted or f"{self._victim} stored at {gpa:#x} what it never would"

    def _hold_to_counters(self, one: Write) -> None:
        for gpa, last in self._counters.items():
            first = gpa - one.gpa
            stored = one.data[first : first + _COUNTER_BYTES] if first >= 0 else b""
            if len(stored) != _COUNTER_BYTES:
                continue
            number = self._counters[gpa] = int.from_bytes(stored, "little")
            if number <= last and not self._complaints and not self._only_aim:
                self._corrupted = self._corrupted or f"{self._victim} stored {number} at {gpa:#x} after {last}"

    def _misread(self, wrong: Discrepancy) -> None:
        for secret in self._holdings:
            secret.misread(wrong.read)
        if self._complaints or (self._only_aim and not _hits(self._aim, wrong)):
            return
        self._corrupted = self._corrupted or f"{self._victim} read what it did not write at {wrong.at:#x}"

    def _wave_away(self, one: PValidate) -> None:
        """A guest that validates a page after #VC has decided to trust it: that complaint is no more.

        Nothing else takes one back: to rescind a page or to share it is distrust, and what another
        party said is not the guest's to wave away.
        """
        for gpa in [at for at in self._complaints if at is not None and one.gpa <= at < one.gpa + one.length]:
            del self._complaints[gpa]


def _ends(msr: int) -> bool:
    """Whether a value of the GHCB MSR asks for the VM's end."""
    try:
        return isinstance(parse_request(msr), TerminateRequest)
    except GhcbMsrError:
        return False


def _finds_save_area_changed(entry: Entry, victim: str) -> bool:
    """Whether hardware told somebody who entered a victim that its registers are not those it stored: EXITCODE 7Fh.

    Nothing else makes VMRUN end so. A platform that answers VMEXIT_INVALID there says no more than that it refuses.
    """
    one = entry.operation
    return isinstance(one, VmKick | VmRun) and one.vm == victim and entry.answer == ExitCode.SHUTDOWN


def _hits(aim: Aim | None, wrong: Discrepancy) -> bool:
    if aim is None:
        return False
    first = aim.gpa - wrong.gpa
    return first >= 0 and wrong.read[first : first + len(aim.value)] == aim.value


_COUNTER_BYTES = 8

_EXITS = frozenset({FaultKind.NESTED_PAGE_FAULT, FaultKind.RMP_FAULT})
"""Faults of a guest that end in its hypervisor, which sees address and error; the others stay in the guest."""

_NOTHING_THERE = frozenset({FaultKind.UNDEFINED_OPCODE, FaultKind.MACHINE_CHECK, FaultKind.VMM_COMMUNICATION})
"""Faults that protect nobody."""

_GOES_ON = frozenset({Status.SUCCESS, Status.SPDM_REQUEST, Status.EXPAND_BUFFER_LENGTH_REQUEST})
"""Answers of firmware that did as it was asked, or will when it has been given what it wants."""

_REFUSALS: Mapping[type, Callable[..., bool]] = {
    Fault: lambda answer: answer.kind not in _NOTHING_THERE,
    PspAnswer: lambda answer: answer.status not in _GOES_ON,
    PValidateResult: lambda answer: answer.code != 0,
    RmpQueryResult: lambda answer: answer.code != 0,
    RmpReadResult: lambda answer: answer.code != 0,
}


def _refusal(entry: Entry) -> str:
    """How an adversary's operation was refused; empty if it was carried out."""
    answer: Answer = entry.answer
    if isinstance(entry.operation, PSmash):
        return ""  # It changes no owner and no contents: an entry that is small already is no protection.
    if isinstance(entry.operation, AgentCall) and isinstance(answer, bytes):
        refused = refused_by_agent(answer)
    elif isinstance(answer, int):
        refused = answer != 0 and type(entry.operation) in CODED
    else:
        refuses = _REFUSALS.get(type(answer))
        refused = refuses is not None and refuses(answer)
    return f"{type(entry.operation).__name__} of the {entry.actor.role}: {answer!r}" if refused else ""
