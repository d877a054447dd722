"""The judge's words are those of the attack matrix, section 1; transcripts here are made up, near misses included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.oracle.holdings import Measure
from cluster.oracle.ledger import CannotFollow, Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Aim, NothingTried, Outcome, judge
from node.actor import HYPERVISOR, Actor, Role
from node.operations import (
    Copy,
    Cpuid,
    CpuidResult,
    Fault,
    FaultKind,
    Fetch,
    HostRead,
    HostWrite,
    NestedUnmap,
    PageStateChange,
    PspAnswer,
    PspCommand,
    PValidate,
    PValidateResult,
    Read,
    ReadMsr,
    RmpAdjust,
    RmpUpdate,
    Runs,
    TimedRead,
    VirtualRead,
    VirtualWrite,
    Write,
)
from psp.status import Status
from psp.system_bus import RmpEntry

VICTIM = Actor(Role.GUEST, "victim")
TENANT = Actor(Role.GUEST, "tenant")
DEVICE = Actor(Role.DEVICE, "00:01.0")
CANARY = bytes(range(0x40, 0x80))
N = Measure().leak_bytes
JUNK = b"\xee" * 64
GPA, OTHER, SHARED = 0x20_0000, 0x20_1000, 0x200_0000
NOTHING = HostWrite(0, b"\0"), None
"""An adversary's operation of no consequence: without any there is nothing to judge."""


def ledger(*, canary: bytes = CANARY) -> Ledger:
    book = Ledger()
    book.keep("victim", "canary", canary)
    return book


def heard(*steps: tuple[Actor, object, object]) -> Transcript:
    """A transcript that begins with the victim's store of its canary."""
    transcript = Transcript()
    for actor, operation, answer in ((VICTIM, Write(GPA, CANARY), None), (HYPERVISOR, *NOTHING), *steps):
        transcript.observe(actor, (operation,), (answer,))
    return transcript


def outcome(*steps: tuple[Actor, object, object], **others) -> Outcome:
    return judge(ledger(), heard(*steps), **others).outcome


def told(octets: bytes, actor: Actor = HYPERVISOR) -> tuple[Actor, object, object]:
    return actor, HostRead(0, len(octets)), octets


# Leaked.


@given(st.integers(0, len(CANARY) - N), st.binary(max_size=40), st.binary(max_size=40))
def test_n_bytes_of_the_canary_anywhere_in_an_answer_are_a_leak(at: int, before: bytes, after: bytes) -> None:
    assert outcome(told(before + CANARY[at : at + N] + after)) is Outcome.LEAKED


@given(st.integers(0, len(CANARY) - N + 1), st.integers(0, 255), st.integers(0, 255))
def test_one_byte_less_is_none(at: int, before: int, after: int) -> None:
    piece = CANARY[at : at + N - 1]
    # Not by accident the byte that is missing.
    fence = [bytes([one]) for one in (before, after) if bytes([one]) not in CANARY] or [b"\0"]
    assert outcome(told(fence[0] + piece + fence[-1])) is Outcome.BLOCKED


def test_bytes_that_lie_scattered_are_none() -> None:
    assert outcome(told(b"".join(bytes([one, 0]) for one in CANARY))) is Outcome.BLOCKED
    seven = [CANARY[at : at + 7] for at in range(0, len(CANARY), 8)]
    assert outcome(told(b"\0".join(seven))) is Outcome.BLOCKED


@given(st.integers(1, N))
def test_a_canary_fetched_in_small_reads_is_a_leak_all_the_same(size: int) -> None:
    reads = [told(CANARY[at : at + size]) for at in range(0, len(CANARY), size)]
    assert outcome(*reads) is Outcome.LEAKED


def test_reads_of_two_adversaries_count_together_but_are_not_joined_into_one() -> None:
    half = N // 2
    assert outcome(told(CANARY[:half]), told(CANARY[half:N], DEVICE)) is Outcome.LEAKED
    assert outcome(told(CANARY[:half]), told(CANARY[: half - 1], DEVICE)) is Outcome.BLOCKED
    by_turns = [told(CANARY[at : at + 1], (HYPERVISOR, DEVICE)[at % 2]) for at in range(len(CANARY))]
    assert outcome(*by_turns) is Outcome.BLOCKED


def test_the_same_bytes_twice_are_no_more_than_once() -> None:
    assert outcome(told(CANARY[: N // 2]), told(CANARY[: N // 2]), told(CANARY[: N // 2])) is Outcome.BLOCKED


@pytest.mark.parametrize(
    "answer", [Runs(((0, b"x"), (4096, CANARY))), PspAnswer(0, CANARY), PspAnswer(Status.INVALID_PARAM, CANARY)]
)
def test_bytes_leak_in_whatever_form_they_come(answer: object) -> None:
    assert outcome((HYPERVISOR, HostRead(0, 1), answer)) is Outcome.LEAKED


def number(octets: bytes) -> int:
    return int.from_bytes(octets, "little")


def faulted(address: bytes, error: int = 0, actor: Actor = HYPERVISOR) -> tuple[Actor, object, object]:
    return actor, HostRead(0, 1), Fault(FaultKind.RMP_FAULT, number(address), error)


def cpuid(octets: bytes) -> tuple[Actor, object, object]:
    return TENANT, Cpuid(0), CpuidResult(*[number(octets[at : at + 4]) for at in range(0, 16, 4)])


def test_the_address_of_a_fault_tells_its_bytes() -> None:
    assert outcome(faulted(CANARY[:8]), faulted(CANARY[8:16])) is Outcome.LEAKED
    assert outcome(faulted(CANARY[8:16], actor=TENANT), faulted(CANARY[40:48], actor=DEVICE)) is Outcome.LEAKED
    # One after the other, also where a piece lies over two of them and whatever the errors between them are.
    halves = [faulted(b"\0" * 4 + CANARY[:4], 4), faulted(CANARY[4:12], 5), faulted(CANARY[12:16] + b"\0" * 4, 4)]
    assert outcome(*halves) is Outcome.LEAKED


def test_less_than_n_bytes_in_addresses_of_faults_are_no_leak() -> None:
    assert outcome(faulted(CANARY[:8])) is Outcome.BLOCKED
    assert outcome(faulted(CANARY[:8]), faulted(CANARY[:8])) is Outcome.BLOCKED
    assert outcome(faulted(CANARY[:8]), faulted(CANARY[8:15] + b"\0")) is Outcome.BLOCKED
    # The frame number of a word shaped like an entry is 5 bytes of it: an attack that yields no more says so.
    frames = [faulted(b"\0" + CANARY[at + 1 : at + 6] + b"\0\0") for at in range(0, 64, 8)]
    assert outcome(*frames) is Outcome.BLOCKED
    assert outcome(*frames, measure=Measure(piece_bytes=5)) is Outcome.LEAKED


def test_the_error_of_a_fault_tells_its_bytes_and_is_not_joined_to_its_address() -> None:
    nothing = b"\0" * 8
    assert outcome(faulted(nothing, number(CANARY[:8])), faulted(nothing, number(CANARY[8:16]))) is Outcome.LEAKED
    middle = faulted(b"\0" * 4 + CANARY[:4], number(CANARY[4:8] + b"\0" * 4))
    assert outcome(middle, measure=Measure(leak_bytes=8)) is Outcome.BLOCKED


def test_a_fault_between_two_small_reads_does_not_part_them() -> None:
    between = faulted(b"\xee" * 8)
    timed = TENANT, TimedRead(0), 80
    reads = [told(CANARY[at : at + 4], TENANT) for at in range(0, 16, 4)]
    assert outcome(*[one for read in reads for one in (read, between, timed)]) is Outcome.LEAKED


def test_the_registers_that_cpuid_sets_tell_their_bytes() -> None:
    assert outcome(cpuid(CANARY[:16])) is Outcome.LEAKED
    assert outcome(cpuid(CANARY[:15] + b"\0")) is Outcome.BLOCKED
    assert outcome(cpuid(CANARY[4:8] + CANARY[:4] + CANARY[12:16] + CANARY[8:12])) is Outcome.BLOCKED
    own = VICTIM, *cpuid(CANARY[:16])[1:]
    assert outcome(own) is Outcome.BLOCKED


def test_a_number_from_a_register_tells_eight_bytes_whatever_its_sign() -> None:
    negative = number(b"\xff" * 8) - (1 << 64)
    high = bytes(range(0xC0, 0x100))
    reads = [(HYPERVISOR, ReadMsr(0, 0), number(high[at : at + 8]) - (1 << 64)) for at in (0, 8)]
    book = ledger(canary=high)
    transcript = heard(*reads)
    assert judge(book, transcript).outcome is Outcome.LEAKED
    assert judge(book, heard(reads[0], (HYPERVISOR, ReadMsr(0, 0), negative))).outcome is Outcome.BLOCKED
    assert outcome(faulted(b"\xff" * 20)) is Outcome.BLOCKED  # a hostile operand that comes back


@pytest.mark.parametrize("kind", [FaultKind.NESTED_PAGE_FAULT, FaultKind.RMP_FAULT])
def test_a_nested_fault_of_the_victim_tells_the_hypervisor_its_address(kind: FaultKind) -> None:
    """As when its own secret is served to its page walk."""

    def stopped(octets: bytes, kind: FaultKind = kind) -> tuple[Actor, object, object]:
        return VICTIM, VirtualRead(0, 1), Fault(kind, number(octets))

    assert outcome(stopped(CANARY[:8]), stopped(CANARY[8:16])) is Outcome.LEAKED
    assert outcome(stopped(CANARY[:8]), stopped(CANARY[8:15] + b"\0")) is not Outcome.LEAKED
    # An exception of its own stays in the guest.
    inside = FaultKind.PAGE_FAULT
    assert outcome(stopped(CANARY[:8], inside), stopped(CANARY[8:16], inside)) is Outcome.DOS


def test_another_tenant_or_victim_is_an_adversary() -> None:
    assert outcome((TENANT, Read(GPA, 64), CANARY)) is Outcome.LEAKED
    book = ledger()
    book.keep("second", "its own", bytes(range(64)))
    transcript = heard((Actor(Role.GUEST, "second"), Read(GPA, 64), CANARY))
    assert judge(book, transcript).outcome is Outcome.LEAKED


def test_what_the_victim_reads_itself_is_no_leak() -> None:
    assert outcome((VICTIM, Read(GPA, 64), CANARY)) is Outcome.BLOCKED


def test_how_many_bytes_make_a_leak_can_be_named() -> None:
    assert outcome(told(CANARY[:8]), measure=Measure(leak_bytes=8)) is Outcome.LEAKED
    assert outcome(told(CANARY[:5]), measure=Measure(leak_bytes=5)) is Outcome.LEAKED
    assert outcome(told(CANARY[:7]), measure=Measure(leak_bytes=8)) is Outcome.BLOCKED
    assert outcome(told(CANARY[:16]), measure=Measure(leak_bytes=17)) is Outcome.BLOCKED


def test_a_canary_that_the_victim_published_is_no_secret_any_more() -> None:
    publish = (VICTIM, Write(SHARED, CANARY, private=False), None)
    assert outcome(publish, told(CANARY)) is Outcome.BLOCKED
    assert outcome((VICTIM, Read(GPA, 64), CANARY), publish, told(CANARY)) is Outcome.BLOCKED


def test_what_leaked_before_it_was_published_has_leaked() -> None:
    publish = (VICTIM, Write(SHARED, CANARY, private=False), None)
    assert outcome(told(CANARY), publish) is Outcome.LEAKED


def test_a_part_that_was_published_leaves_the_rest_secret() -> None:
    publish = (VICTIM, Write(SHARED, CANARY[:32], private=False), None)
    assert outcome(publish, told(CANARY[: 32 + N - 1])) is Outcome.BLOCKED
    assert outcome(publish, told(CANARY[: 32 + N])) is Outcome.LEAKED


def test_a_store_that_faulted_published_nothing() -> None:
    publish = (VICTIM, Write(SHARED, CANARY, private=False), Fault(FaultKind.RMP_FAULT, SHARED))
    assert outcome(publish, told(CANARY)) is Outcome.LEAKED


def test_a_victim_that_is_served_its_secret_in_a_wrong_place_does_not_publish_it_by_its_own_will() -> None:
    steps = (
        (VICTIM, Write(OTHER, JUNK), None),
        (VICTIM, Read(OTHER, 64), CANARY),
        (VICTIM, Write(SHARED, CANARY, private=False), None),
    )
    assert outcome(*steps) is Outcome.CORRUPTED  # nobody has fetched it yet
    assert outcome(*steps, told(CANARY)) is Outcome.LEAKED


def test_a_leak_is_stronger_than_all_else() -> None:
    transcript = heard((VICTIM, Read(GPA, 64), JUNK), told(CANARY))
    transcript.complain("victim", "checksum")
    assert judge(ledger(), transcript).outcome is Outcome.LEAKED


# Corrupted.


@given(st.integers(0, 63), st.integers(1, 255))
def test_one_wrong_bit_in_what_the_victim_wrote_last_is_corruption(at: int, flip: int) -> None:
    wrong = bytearray(CANARY)
    wrong[at] ^= flip
    assert outcome((VICTIM, Read(GPA, 64), bytes(wrong))) is Outcome.CORRUPTED
    assert outcome((VICTIM, Read(GPA + at, 1), bytes(wrong[at : at + 1]))) is Outcome.CORRUPTED


def test_an_old_value_is_corruption_although_the_victim_once_wrote_it() -> None:
    assert outcome((VICTIM, Write(GPA, JUNK), None), (VICTIM, Read(GPA, 64), CANARY)) is Outcome.CORRUPTED


@given(st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=5000)), max_size=8), st.data())
def test_a_victim_that_reads_what_it_wrote_last_is_not_corrupted(writes: list[tuple[int, bytes]], data) -> None:
    memory = bytearray(16384)  # an independent copy; unwritten bytes are anything
    memory[: len(CANARY)] = CANARY
    steps = []
    for at, octets in writes:
        memory[at : at + len(octets)] = octets
        steps.append((VICTIM, Write(GPA + at, octets), None))
    at, length = data.draw(st.integers(0, 9000)), data.draw(st.integers(0, 7000))
    steps.append((VICTIM, Read(GPA + at, length), bytes(memory[at : at + length])))
    assert outcome(*steps) is Outcome.BLOCKED


def test_what_nobody_wrote_may_read_as_anything() -> None:
    assert outcome((VICTIM, Read(OTHER, 64), JUNK)) is Outcome.BLOCKED
    assert outcome((VICTIM, Read(GPA, 128), CANARY + JUNK)) is Outcome.BLOCKED


def test_a_store_that_faulted_changed_nothing() -> None:
    refused = (VICTIM, Write(GPA, JUNK), Fault(FaultKind.NESTED_PAGE_FAULT, GPA))
    assert outcome(refused, (VICTIM, Read(GPA, 64), CANARY)) is Outcome.BLOCKED
    assert outcome(refused, (VICTIM, Read(GPA, 64), JUNK)) is Outcome.CORRUPTED


def test_what_a_launch_laid_is_known_too() -> None:
    book = ledger()
    book.lay("victim", OTHER, JUNK)
    assert judge(book, heard((VICTIM, Read(OTHER, 64), JUNK))).outcome is Outcome.BLOCKED
    assert judge(book, heard((VICTIM, Read(OTHER, 64), CANARY))).outcome is Outcome.CORRUPTED


def test_pages_that_the_victim_shared_are_not_its_own_any_more() -> None:
    shared = (VICTIM, PageStateChange(GPA, 4096, shared=True), 0)
    assert outcome(shared, (VICTIM, Read(GPA, 64), JUNK)) is Outcome.BLOCKED
    refused = (VICTIM, PageStateChange(GPA, 4096, shared=True), 1)
    assert outcome(refused, (VICTIM, Read(GPA, 64), JUNK)) is Outcome.CORRUPTED


def test_a_copy_is_a_load_and_a_store() -> None:
    out = Copy(GPA, SHARED, 64, target_private=False)
    honest = (VICTIM, out, CANARY)
    assert outcome(honest, told(CANARY)) is Outcome.BLOCKED, "it sent them out of its own will"
    swapped = (VICTIM, Copy(OTHER, SHARED, 64, target_private=False), CANARY)
    other = (VICTIM, Write(OTHER, JUNK), None)
    assert outcome(other, swapped) is Outcome.CORRUPTED
    assert outcome(other, swapped, told(CANARY)) is Outcome.LEAKED
    came = (VICTIM, Copy(SHARED, OTHER, 64, source_private=False), JUNK)
    assert outcome(came, (VICTIM, Read(OTHER, 64), JUNK)) is Outcome.BLOCKED
    assert outcome(came, (VICTIM, Read(OTHER, 64), CANARY)) is Outcome.CORRUPTED
    stopped = (VICTIM, out, Fault(FaultKind.RMP_FAULT, SHARED))
    assert outcome(stopped, told(CANARY)) is Outcome.LEAKED


def test_shared_memory_is_nobodys_promise() -> None:
    wrote = (VICTIM, Write(SHARED, JUNK, private=False), None)
    assert outcome(wrote, (VICTIM, Read(SHARED, 64, private=False), CANARY)) is Outcome.BLOCKED


def test_only_victims_are_corrupted() -> None:
    wrote = (TENANT, Write(GPA, JUNK), None)
    assert outcome(wrote, (TENANT, Read(GPA, 64), b"\0" * 64)) is Outcome.BLOCKED


def test_with_an_aim_only_the_chosen_value_in_the_chosen_place_counts() -> None:
    aim = Aim("victim", GPA + 16, b"chosen text here")
    garbage = JUNK
    reached = JUNK[:16] + aim.value + JUNK[32:]
    shifted = JUNK[:17] + aim.value + JUNK[33:]
    assert outcome((VICTIM, Read(GPA, 64), garbage), aim=aim) is Outcome.BLOCKED
    assert outcome((VICTIM, Read(GPA, 64), shifted), aim=aim) is Outcome.BLOCKED
    assert outcome((VICTIM, Read(GPA, 64), reached), aim=aim) is Outcome.CORRUPTED
    assert outcome((VICTIM, Read(GPA, 64), reached), aim=Aim("another", aim.gpa, aim.value)) is Outcome.BLOCKED


# Detected.

_VC = Fault(FaultKind.PAGE_NOT_VALIDATED, GPA)


def test_vc_in_the_guest_is_detection() -> None:
    assert outcome((VICTIM, Read(GPA, 64), _VC)) is Outcome.DETECTED


def test_a_complaint_before_the_use_is_detection_and_one_after_it_comes_too_late() -> None:
    use = (VICTIM, Read(GPA, 64), JUNK)
    assert outcome((VICTIM, Read(OTHER, 64), _VC), use) is Outcome.DETECTED
    assert outcome(use, (VICTIM, Read(OTHER, 64), _VC)) is Outcome.CORRUPTED
    early, late = heard(), heard(use)
    early.complain("victim", "checksum")
    early.observe(*[(one,) if at else one for at, one in enumerate(use)])
    late.complain("victim", "checksum")
    assert judge(ledger(), early).outcome is Outcome.DETECTED
    assert judge(ledger(), late).outcome is Outcome.CORRUPTED


def test_a_guest_that_validates_the_page_again_has_waved_its_complaint_away() -> None:
    again = (VICTIM, PValidate(GPA, 4096, large=False), PValidateResult(0, unchanged=False))
    failed = (VICTIM, PValidate(GPA, 4096, large=False), PValidateResult(2, unchanged=False))
    elsewhere = (VICTIM, PValidate(OTHER, 4096, large=False), PValidateResult(0, unchanged=False))
    use = (VICTIM, Read(GPA, 64), JUNK)
    fault = (VICTIM, Read(GPA, 64), _VC)
    assert outcome(fault, again, use) is Outcome.CORRUPTED
    assert outcome(fault, failed, use) is Outcome.DETECTED
    assert outcome(fault, elsewhere, use) is Outcome.DETECTED


def test_a_guest_that_rescinds_a_page_has_not_waved_its_complaint_away() -> None:
    rescind = (VICTIM, PValidate(GPA, 4096, large=False, validate=False), PValidateResult(0, unchanged=True))
    again = (VICTIM, PValidate(GPA, 4096, large=False), PValidateResult(0, unchanged=False))
    use = (VICTIM, Read(GPA, 64), JUNK)
    fault = (VICTIM, Read(GPA, 64), _VC)
    assert outcome(fault, rescind, use) is Outcome.DETECTED
    assert outcome(fault, rescind) is Outcome.DETECTED
    assert outcome(fault, rescind, again, use) is Outcome.CORRUPTED
    assert outcome(fault, again, rescind, use) is Outcome.CORRUPTED


def test_no_validation_waves_away_what_another_party_said() -> None:
    again = (VICTIM, PValidate(GPA, 4096, large=False), PValidateResult(0, unchanged=False))
    transcript = heard()
    transcript.complain("victim", "checksum")
    transcript.observe(VICTIM, (again[1], Read(GPA, 64)), (again[2], JUNK))
    assert judge(ledger(), transcript).outcome is Outcome.DETECTED
    theirs = (TENANT, *again[1:])
    assert outcome((VICTIM, Read(GPA, 64), _VC), theirs, (VICTIM, Read(GPA, 64), JUNK)) is Outcome.DETECTED


def test_a_complaint_of_another_ones_verifier_is_none_of_the_victims() -> None:
    transcript = heard()
    transcript.complain("tenant", "checksum")
    assert judge(ledger(), transcript).outcome is Outcome.BLOCKED


def test_vc_in_an_adversary_is_no_detection() -> None:
    assert outcome((TENANT, Read(GPA, 64), _VC)) is Outcome.BLOCKED


# Blocked, dos, not applicable.


@pytest.mark.parametrize(
    ("actor", "operation", "answer"),
    [
        (HYPERVISOR, HostWrite(0, b"x"), Fault(FaultKind.RMP_FAULT, 0)),
        (HYPERVISOR, RmpUpdate(0, 4096, RmpEntry()), 2),
        (HYPERVISOR, PspCommand(0x90), PspAnswer(Status.INVALID_PARAM, b"")),
        (TENANT, Read(GPA, 64), Fault(FaultKind.RMP_FAULT, GPA)),
        (VICTIM, Read(GPA, 64), Fault(FaultKind.RMP_FAULT, GPA)),
    ],
)
def test_what_is_refused_or_stopped_without_data_is_blocked(actor: Actor, operation: object, answer: object) -> None:
    verdict = judge(ledger(), heard((actor, operation, answer)))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.evidence != "nothing but garbage"


def test_a_victim_that_only_stops_is_denied_service() -> None:
    gone = (HYPERVISOR, NestedUnmap("victim", GPA, 4096), None)
    stops = (VICTIM, Read(GPA, 64), Fault(FaultKind.NESTED_PAGE_FAULT, GPA))
    assert outcome(gone, stops) is Outcome.DOS
    assert outcome(gone, stops, (VICTIM, Read(GPA, 64), CANARY)) is Outcome.BLOCKED  # it went on after all


def test_an_interface_that_is_absent_makes_an_attack_not_applicable() -> None:
    transcript = heard()
    transcript.absent("C-bit")
    assert judge(ledger(), transcript).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (told(CANARY), Outcome.LEAKED),
        ((VICTIM, Read(GPA, 64), JUNK), Outcome.CORRUPTED),
        ((VICTIM, Read(GPA, 64), _VC), Outcome.DETECTED),
        ((HYPERVISOR, HostWrite(0, b"x"), Fault(FaultKind.RMP_FAULT, 0)), Outcome.BLOCKED),
        ((VICTIM, Read(GPA, 64), Fault(FaultKind.NESTED_PAGE_FAULT, GPA)), Outcome.DOS),
        (told(JUNK), Outcome.NOT_APPLICABLE),
        ((HYPERVISOR, HostWrite(0, b"x"), Fault(FaultKind.UNDEFINED_OPCODE, 0)), Outcome.NOT_APPLICABLE),
    ],
)
def test_an_absent_interface_explains_only_what_nothing_else_does(
    step: tuple[Actor, object, object], expected: Outcome, *, before: bool
) -> None:
    transcript = heard() if before else heard(step)
    transcript.absent("C-bit")
    if before:
        transcript.observe(step[0], (step[1],), (step[2],))
    assert judge(ledger(), transcript).outcome is expected


def test_an_attack_that_did_not_begin_for_want_of_an_interface_is_not_applicable() -> None:
    transcript = Transcript()
    transcript.absent("C-bit")
    assert judge(ledger(), transcript).outcome is Outcome.NOT_APPLICABLE


def test_an_instruction_that_is_not_there_protects_nobody() -> None:
    absent = (HYPERVISOR, RmpUpdate(0, 4096, RmpEntry()), Fault(FaultKind.UNDEFINED_OPCODE, 0))
    stops = (VICTIM, Read(GPA, 64), Fault(FaultKind.NESTED_PAGE_FAULT, GPA))
    assert outcome(absent, stops) is Outcome.DOS


def test_a_number_that_was_read_is_a_value_and_a_code_is_none() -> None:
    number = int.from_bytes(CANARY[:8], "little")
    eight = Measure(leak_bytes=8)
    assert outcome((HYPERVISOR, HostRead(0, 8), number), measure=eight) is Outcome.LEAKED
    stops = (VICTIM, Read(GPA, 64), Fault(FaultKind.NESTED_PAGE_FAULT, GPA))
    assert outcome((HYPERVISOR, HostRead(0, 8), 5), stops) is Outcome.DOS
    assert outcome((HYPERVISOR, RmpUpdate(0, 4096, RmpEntry()), number), stops, measure=eight) is Outcome.BLOCKED


@pytest.mark.parametrize(
    ("operation", "answer"),
    [(VirtualWrite(0x1000, JUNK), None), (VirtualRead(GPA, 64), JUNK), (Fetch(GPA, 64), JUNK)],
    ids=["store", "load", "fetch"],
)
def test_a_victim_that_cannot_be_followed_gets_no_verdict(operation: object, answer: object) -> None:
    with pytest.raises(CannotFollow):
        outcome((VICTIM, operation, answer))
    with pytest.raises(CannotFollow):
        outcome((VICTIM, operation, answer), aim=Aim("victim", GPA, JUNK))
    absent = heard((VICTIM, operation, answer))
    absent.absent("C-bit")
    with pytest.raises(CannotFollow):
        judge(ledger(), absent)
    # Without data nothing was used, and an adversary need not be followed.
    assert outcome((VICTIM, operation, Fault(FaultKind.RMP_FAULT, GPA))) is Outcome.BLOCKED
    assert outcome((TENANT, operation, answer)) is Outcome.BLOCKED


def test_where_nobody_did_anything_there_is_nothing_to_judge() -> None:
    transcript = Transcript()
    transcript.observe(VICTIM, (Write(GPA, CANARY),), (None,))
    with pytest.raises(NothingTried):
        judge(ledger(), transcript)


def test_above_the_vmpl_that_is_trusted_a_guest_is_an_adversary():
    above = Actor(Role.GUEST, "victim", vmpl=2)
    steps = (above, Read(GPA, 64), CANARY)
    assert outcome(steps) is Outcome.BLOCKED, "a guest is not told its own secret"
    split = ledger()
    split.distrust_above("victim", 1)
    assert judge(split, heard(steps)).outcome is Outcome.LEAKED
    below = (Actor(Role.GUEST, "victim", vmpl=1), Read(GPA, 64), CANARY)
    assert judge(split, heard(below)).outcome is Outcome.BLOCKED
    misread = (Actor(Role.GUEST, "victim", vmpl=1), Read(GPA, 64), JUNK)
    assert judge(split, heard(misread)).outcome is Outcome.CORRUPTED


@pytest.mark.parametrize(
    ("grant", "answer", "expected"),
    [
        (RmpAdjust(GPA, 4096, large=False, target=2, permissions=0b0011), 0, Outcome.BLOCKED),
        (RmpAdjust(GPA, 4096, large=False, target=1, permissions=0, vmsa=True), 0, Outcome.BLOCKED),
        (RmpAdjust(GPA, 4096, large=False, target=2, permissions=0b0001), 0, Outcome.CORRUPTED),
        (RmpAdjust(GPA, 4096, large=False, target=2, permissions=0b0011), 2, Outcome.CORRUPTED),
        (RmpAdjust(OTHER, 4096, large=False, target=2, permissions=0b0011), 0, Outcome.CORRUPTED),
    ],
)
def test_a_page_that_others_may_write_may_change(grant, answer, expected):
    assert outcome((VICTIM, grant, answer), (VICTIM, Read(GPA, 64), JUNK)) is expected


def test_a_page_that_is_the_victims_alone_again_may_not():
    given_back = RmpAdjust(GPA, 4096, large=False, target=2, permissions=0)
    steps = (
        (VICTIM, RmpAdjust(GPA, 4096, large=False, target=2, permissions=0b0011), 0),
        (VICTIM, Write(GPA, JUNK), None),
        (VICTIM, Read(GPA, 64), CANARY),
    )
    assert outcome(*steps) is Outcome.BLOCKED
    assert outcome(*steps, (VICTIM, given_back, 0), (VICTIM, Read(GPA, 64), CANARY)) is Outcome.BLOCKED
    again = ((VICTIM, Write(GPA, JUNK), None), (VICTIM, Read(GPA, 64), CANARY))
    assert outcome(*steps, (VICTIM, given_back, 0), *again) is Outcome.CORRUPTED
