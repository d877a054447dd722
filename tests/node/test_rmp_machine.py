"""Random instructions of host, firmware and guests at each VMPL, as operations, against ``rmp_reference``."""

from __future__ import annotations

import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rmp_reference import PAGES_OF_2_MIB, Reference
from rmp_tables import GUEST_BYTES, GUEST_SPA, VMPLS, VMS, snp_board

from node import operations as op
from psp.system_bus import PAGE_BYTES, RmpEntry

BASE = GUEST_SPA // PAGE_BYTES
PAGES = GUEST_BYTES // PAGE_BYTES
WATCHED = (0, 1, 2, 511, 512, 513, 1023)

pages = st.sampled_from(WATCHED)
blocks = st.sampled_from((0, PAGES_OF_2_MIB))
vms = st.sampled_from(sorted(VMS))
vmpls = st.sampled_from((0, 0, 0, 1, 2, 3))
flags = st.booleans()


def said(answer: op.Answer) -> object:
    """A fault in the reference's words; anything else as it is."""
    if not isinstance(answer, op.Fault):
        return answer
    if answer.kind is op.FaultKind.PAGE_NOT_VALIDATED:
        return "vc"
    assert answer.kind is op.FaultKind.RMP_FAULT
    assert answer.error >> 31 & 1
    assert answer.error >> 34 & 1
    return "npf" + (" sizem" if answer.error >> 35 & 1 else "") + (" vmpl" if answer.error >> 36 & 1 else "")


class Instructions(RuleBasedStateMachine):
    """Guests see page n of the memory at address n; hosts may say that it is another."""

    product = "Turin"

    @initialize(seen=st.sampled_from(((), (0,), (0, PAGES_OF_2_MIB))))
    def start(self, seen: tuple[int, ...]) -> None:
        self.board = snp_board(self.product)
        self.reference = Reference()
        for page in seen:
            self.somebody_looks(page)

    def host(self, one: op.HypervisorOperation) -> op.Answer:
        return self.board.execute_host((one,))[0]

    def guest(self, vm: str, vmpl: int, one: op.GuestOperation) -> op.Answer:
        return self.board.execute_guest(self.board.vmcb(vm, vmpl), (one,))[0]

    def unit(self, page: int, large: bool) -> tuple[int, int]:
        return page - page % PAGES_OF_2_MIB if large else page, (PAGES_OF_2_MIB if large else 1) * PAGE_BYTES

    @rule(
        page=pages, assigned=st.sampled_from((True, True, False)), large=flags,
        immutable=st.sampled_from((False, False, True)), moved=st.sampled_from((0, 0, 0, 1, PAGES_OF_2_MIB)),
        asid=st.sampled_from((0, 1, 1, 2)),
    )  # fmt: skip
    def rmpupdate(self, page: int, assigned: bool, large: bool, immutable: bool, moved: int, asid: int) -> None:
        page, length = self.unit(page, large)
        gpa = page + moved if asid else moved % 2
        entry = RmpEntry(assigned=assigned, large=large, immutable=immutable, gpa=gpa * PAGE_BYTES, asid=asid)
        expected = self.reference.rmpupdate(page, assigned, large, immutable, gpa, asid)
        assert self.host(op.RmpUpdate(GUEST_SPA + page * PAGE_BYTES, length, entry)) == expected

    @rule(page=pages, large=flags, asid=st.integers(1, 2), sizes=flags)
    def a_page_s_life(self, page: int, large: bool, asid: int, sizes: bool) -> None:
        """Given, accepted, frozen, asked back in vain, reclaimed and taken: the way most pages go."""
        vm = {number: name for name, number in VMS.items()}[asid]
        self.rmpupdate(page, True, large, False, 0, asid)
        self.pvalidate(page, vm, 0, large != sizes, True)
        self.rmpupdate(page, True, large, True, 0, asid)
        self.access(page, vm, 0, True)
        self.rmpupdate(page, False, large != sizes, False, 0, 0)
        self.firmware_reclaims(page)
        self.rmpadjust(page, vm, 0, large, 1, 3, sizes)

    @rule(page=pages)
    def psmash(self, page: int) -> None:
        assert self.host(op.PSmash(GUEST_SPA + page * PAGE_BYTES)) == self.reference.psmash(page)

    @rule(page=pages)
    def host_write(self, page: int) -> None:
        answer = self.host(op.HostWrite(GUEST_SPA + page * PAGE_BYTES, b"host"))
        if self.reference.host_may_write(page):
            assert answer is None
        else:
            assert answer == op.Fault(op.FaultKind.RMP_FAULT, GUEST_SPA + page * PAGE_BYTES, 0x8000_0003)

    @rule(page=pages)
    def rmpread(self, page: int) -> None:
        answer = self.host(op.RmpRead(GUEST_SPA + page * PAGE_BYTES))
        assert isinstance(answer, op.RmpReadResult)
        gpa, assigned, size, immutable, _, asid = struct.unpack("<QBBBBI", answer.state)
        here = self.reference.at(page)
        in_use = any(self.reference.at(one).assigned for one in self.reference.block(page))
        assert (gpa // PAGE_BYTES, bool(assigned), bool(immutable), asid) == (
            here.gpa, here.assigned, here.immutable, here.asid,
        )  # fmt: skip
        assert size == here.large + 2 * in_use

    @rule(page=pages)
    def somebody_looks(self, page: int) -> None:
        assert self.board.rmp is not None
        self.host(op.HostRead(self.board.rmp.layout.entry_spa(BASE + page), 16))

    @rule(page=pages)
    def firmware_reclaims(self, page: int) -> None:
        entry = self.board.bus.rmp_entry(GUEST_SPA + page * PAGE_BYTES)
        first, _ = self.unit(page, entry.large)
        entry = self.board.bus.rmp_entry(GUEST_SPA + first * PAGE_BYTES)
        if entry.immutable:
            self.board.bus.rmp_set(GUEST_SPA + first * PAGE_BYTES, _changed(entry, immutable=False))
            self.reference.reclaim(page)

    @rule(page=pages)
    def firmware_launches(self, page: int) -> None:
        here = self.reference.at(page)
        if here.asid and here.immutable and not here.large and not here.validated:
            spa = GUEST_SPA + page * PAGE_BYTES
            entry = self.board.bus.rmp_entry(spa)
            self.board.bus.rmp_set(spa, _changed(entry, immutable=False, validated=True))
            self.reference.launch_update(page)

    @rule(page=pages, vm=vms, vmpl=vmpls, large=flags, validate=st.sampled_from((True, True, False)))
    def pvalidate(self, page: int, vm: str, vmpl: int, large: bool, validate: bool) -> None:
        page, length = self.unit(page, large)
        answer = said(self.guest(vm, vmpl, op.PValidate(page * PAGE_BYTES, length, large, validate)))
        code, unchanged = self.reference.pvalidate(page, page, VMS[vm], vmpl, large, validate)
        if isinstance(answer, op.PValidateResult):
            assert (answer.code, answer.unchanged) == (code, unchanged)
        else:
            assert answer == code

    @rule(page=pages, vm=vms, vmpl=vmpls, large=flags, other=st.integers(0, 3), rights=st.integers(0, 15), vmsa=flags)
    def rmpadjust(self, page: int, vm: str, vmpl: int, large: bool, other: int, rights: int, vmsa: bool) -> None:
        page, length = self.unit(page, large)
        answer = said(self.guest(vm, vmpl, op.RmpAdjust(page * PAGE_BYTES, length, large, other, rights, vmsa)))
        assert answer == self.reference.rmpadjust(page, page, VMS[vm], vmpl, large, other, rights, vmsa)

    @rule(page=pages, vm=vms, vmpl=vmpls, other=st.integers(0, 3))
    def rmpquery(self, page: int, vm: str, vmpl: int, other: int) -> None:
        answer = said(self.guest(vm, vmpl, op.RmpQuery(page * PAGE_BYTES, other)))
        if isinstance(answer, op.RmpQueryResult):
            answer = answer.code or (answer.permissions, answer.large)
        assert answer == self.reference.rmpquery(page, page, VMS[vm], vmpl, other)

    @rule(page=pages, vm=vms, vmpl=vmpls, write=flags)
    def access(self, page: int, vm: str, vmpl: int, write: bool) -> None:
        one = op.Write(page * PAGE_BYTES, vm.encode()) if write else op.Read(page * PAGE_BYTES, 16)
        answer = said(self.guest(vm, vmpl, one))
        expected = self.reference.access(page, page, VMS[vm], vmpl, write)
        assert answer == expected if expected else not isinstance(answer, str)

    @rule(page=pages, vm=vms)
    def shared_write(self, page: int, vm: str) -> None:
        answer = self.guest(vm, 0, op.Write(page * PAGE_BYTES, b"shared", private=False))
        assert (answer is None) is self.reference.host_may_write(page)
        if answer is not None:
            assert answer == op.Fault(op.FaultKind.RMP_FAULT, page * PAGE_BYTES, 0x1_8000_0007)

    @invariant()
    def no_page_has_two_owners_and_entries_agree(self) -> None:
        for page in WATCHED:
            writers = [
                vm for vm in VMS
                if self.guest(vm, 0, op.Write(page * PAGE_BYTES, bytes(16))) is None
            ]  # fmt: skip
            if self.reference.host_may_write(page):
                assert not writers
            assert len(writers) <= 1
            entry = self.board.bus.rmp_entry(GUEST_SPA + page * PAGE_BYTES)
            here = self.reference.at(page)
            assert (entry.assigned, entry.large, entry.immutable, entry.gpa // PAGE_BYTES, entry.asid) == (
                here.assigned, here.large, here.immutable, here.gpa, here.asid,
            )  # fmt: skip
            assert (entry.vmsa, entry.validated, list(entry.vmpl_permissions)) == (
                here.vmsa, here.validated, here.permissions,
            )  # fmt: skip
        for vm, asid in VMS.items():
            owned = sum(one.asid == asid for one in self.reference.pages.values())
            assert self.board.bus.rmp_pages_of_asid(asid) == owned + VMPLS, vm


def _changed(entry: RmpEntry, **fields: bool) -> RmpEntry:
    values = {name: getattr(entry, name) for name in RmpEntry.__slots__}
    return RmpEntry(**{**values, **fields})


class Flat(Instructions):
    """The same on a part with a flat table; it has no RMPREAD."""

    product = "Milan"

    @rule(page=pages)
    def rmpread(self, page: int) -> None:
        answer = self.host(op.RmpRead(GUEST_SPA + page * PAGE_BYTES))
        assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


TestSegmented = Instructions.TestCase
TestSegmented.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFlat = Flat.TestCase
TestFlat.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
