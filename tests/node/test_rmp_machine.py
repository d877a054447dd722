"""Random instructions of host, firmware and guests at each VMPL, with real data, against ``rmp_reference``.

All of it are operations and commands that anybody in the role may issue. Whatever anybody is
answered is searched for secrets that are not his.
"""

from __future__ import annotations

import hashlib
import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rmp_laboratory import GUEST_BYTES, GUEST_SPA, LAUNCHING, VMPLS, VMS, gctx, laboratory
from rmp_reference import PAGES_OF_2_MIB, Reference

from node import operations as op
from node.physical_port import PhysicalPort
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.launch_digest import PageType
from psp.system_bus import PAGE_BYTES, RmpEntry

PAGES = GUEST_BYTES // PAGE_BYTES
WATCHED = (0, 1, 2, 511, 512, 513, 1023)
TOKEN_BYTES = 16
EXTRA_VCPU = 9

pages = st.sampled_from(WATCHED)
vms = st.sampled_from(sorted(VMS))
vmpls = st.sampled_from((0, 0, 0, 1, 2, 3))
flags = st.booleans()
rights = st.integers(0, 15)


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


def contents(answer: op.Answer) -> bytes:
    """Every byte that an answer carries."""
    match answer:
        case bytes():
            return answer
        case op.Runs(runs):
            return b"".join(data for _, data in runs)
        case op.PspAnswer(_, buffer):
            return buffer
        case _:
            return b""


class Instructions(RuleBasedStateMachine):
    """Guests see page n of the memory at address n; the host may say that it is another.

    ``lies`` says of each page under whose key its first bytes were written, 0 for none, and what they are;
    ``filled`` has the pages whose other bytes are zeros under the same key.
    """

    product = "Turin"
    mapped_large = True

    @initialize(seen=st.sampled_from(((), (0,), (0, PAGES_OF_2_MIB))))
    def start(self, seen: tuple[int, ...]) -> None:
        self.lab = laboratory(self.product)
        if not self.mapped_large:
            for vm in VMS:
                self.lab.host(op.NestedMap(vm, 0, GUEST_SPA, GUEST_BYTES, large=False))
        self.lab.overheard = self.overheard
        self.port = PhysicalPort(self.lab.board.dram)
        self.reference = Reference()
        self.lies = {page: (0, bytes(TOKEN_BYTES)) for page in WATCHED}
        self.filled = set(WATCHED)
        self.secrets: dict[bytes, str] = {}
        self.running: dict[int, int] = {}
        for page in seen:
            self.somebody_looks(page)

    def overheard(self, who: str, answer: op.Answer) -> None:
        told = contents(answer)
        for secret, owner in self.secrets.items():
            assert owner == who or secret not in told, f"{who} was told what {owner} wrote"

    def host(self, one: op.HypervisorOperation) -> op.Answer:
        return self.lab.host(one)[0]

    def guest(self, vm: str, vmpl: int, one: op.GuestOperation) -> op.Answer:
        return self.lab.guest(vm, one, vmpl=vmpl)[0]

    def spa(self, page: int) -> int:
        return GUEST_SPA + page * PAGE_BYTES

    def unit(self, page: int, large: bool) -> tuple[int, int]:
        return page - page % PAGES_OF_2_MIB if large else page, (PAGES_OF_2_MIB if large else 1) * PAGE_BYTES

    def token(self, who: str) -> bytes:
        """Bytes that nobody has written before."""
        return hashlib.sha256(f"{who} {len(self.secrets)}".encode()).digest()[:TOKEN_BYTES]

    # The host.

    @rule(
        page=pages, assigned=st.sampled_from((True, True, False)), large=flags,
        immutable=st.sampled_from((False, False, True)), moved=st.sampled_from((0, 0, 0, 1, PAGES_OF_2_MIB)),
        asid=st.sampled_from((0, 1, 1, 2, 3, 3)),
    )  # fmt: skip
    def rmpupdate(self, page: int, assigned: bool, large: bool, immutable: bool, moved: int, asid: int) -> None:
        page, length = self.unit(page, large)
        gpa = page + moved if asid else moved % 2
        entry = RmpEntry(assigned=assigned, large=large, immutable=immutable, gpa=gpa * PAGE_BYTES, asid=asid)
        expected = self.reference.rmpupdate(page, assigned, large, immutable, gpa, asid)
        assert self.host(op.RmpUpdate(self.spa(page), length, entry)) == expected

    @rule(page=pages, large=flags, vm=vms, sizes=flags)
    def a_page_s_life(self, page: int, large: bool, vm: str, sizes: bool) -> None:
        """Given, accepted, frozen, asked back in vain, reclaimed and changed: the way most pages go."""
        asid = VMS[vm]
        self.rmpupdate(page, True, large, False, 0, asid)
        self.pvalidate(page, vm, 0, large != sizes, True)
        self.access(page, vm, 0, True)
        self.rmpupdate(page, True, large, True, 0, asid)
        self.access(page, vm, 0, True)
        self.pvalidate(page, vm, 0, large, False)
        self.psmash(self.unit(page, True)[0])
        self.rmpupdate(page, False, large != sizes, False, 0, 0)
        self.firmware_reclaims(page, large)
        self.rmpadjust(page, vm, 0, large, 1, 3, sizes)

    @rule(page=pages, vm=vms, large=flags, back=flags)
    def a_page_moves(self, page: int, vm: str, large: bool, back: bool) -> None:
        """Given to a guest under one address and then, with what lies there, under another."""
        self.rmpupdate(page, True, large, False, 0, VMS[vm])
        self.pvalidate(page, vm, 0, large, True)
        self.access(page, vm, 0, True)
        self.rmpupdate(page, True, large, False, PAGES_OF_2_MIB, VMS[vm])
        self.pvalidate(page, vm, 0, large, True)
        if back:
            self.rmpupdate(page, True, large, False, 0, VMS[vm])
            self.access(page, vm, 0, False)

    @rule(page=pages, vm=vms, other=pages)
    def a_block_s_life(self, page: int, vm: str, other: int) -> None:
        """Smashed, one page of it given back, and asked to be one again."""
        self.rmpupdate(page, True, True, False, 0, VMS[vm])
        self.pvalidate(page, vm, 0, True, True)
        self.psmash(self.unit(page, True)[0])
        self.pvalidate(other, vm, 0, False, False)
        self.firmware_unsmashes(page)
        self.pvalidate(other, vm, 0, False, True)
        self.firmware_unsmashes(page)

    @rule(page=pages, vm=vms, large=flags, spoilt=st.sampled_from(("", "", "rescinded", "frozen")))
    def a_save_area_s_life(self, page: int, vm: str, large: bool, spoilt: str) -> None:
        """Given, accepted, filled, made a save area, smashed, put together, run with, and asked for meanwhile."""
        self.rmpupdate(page, True, large, False, 0, VMS[vm])
        self.pvalidate(page, vm, 0, large, True)
        self.access(page, vm, 0, True)
        self.rmpadjust(page, vm, 0, large, 1, 3, True)
        if large:
            self.psmash(self.unit(page, True)[0])
            self.firmware_unsmashes(page)
        if spoilt == "rescinded":
            self.pvalidate(page, vm, 0, large, False)
        if spoilt == "frozen":
            self.rmpupdate(page, True, large, True, 0, VMS[vm])
        self.vmrun(page, vm)
        self.rmpupdate(page, False, large, False, 0, 0)
        self.rmpadjust(page, vm, 0, large, 2, 1, False)
        self.psmash(self.unit(page, True)[0])
        self.vmrun(page, vm)

    @rule(page=pages, vm=vms, large=flags, give=rights, more=rights, vmpl=st.integers(1, 3))
    def a_page_of_many_levels(self, page: int, vm: str, large: bool, give: int, more: int, vmpl: int) -> None:
        """Accepted, filled, opened to one VMPL, by that one to the next, and used by each."""
        self.rmpupdate(page, True, large, False, 0, VMS[vm])
        self.pvalidate(page, vm, 0, large, True)
        self.access(page, vm, 0, True)
        self.rmpadjust(page, vm, 0, large, vmpl, give, False)
        self.rmpadjust(page, vm, vmpl, large, vmpl % 3 + 1, more, True)
        for who in range(1, VMPLS):
            self.rmpquery(page, vm, vmpl, who)
            self.access(page, vm, who, False)
            self.access(page, vm, who, True)

    @rule(page=pages, save_area=flags, give=rights)
    def a_launched_page_s_life(self, page: int, save_area: bool, give: int) -> None:
        self.host_write(page)
        self.rmpupdate(page, True, False, True, 0, 3)
        self.firmware_launches(page, save_area, give)
        self.access(page, "three", 0, False)
        self.vmrun(page, "three")

    @rule(page=pages)
    def psmash(self, page: int) -> None:
        assert self.host(op.PSmash(self.spa(page))) == self.reference.psmash(page)

    @rule(page=pages)
    def host_write(self, page: int) -> None:
        data = self.token("host").ljust(PAGE_BYTES, b"\0")
        answer = self.host(op.HostWrite(self.spa(page), data))
        if self.reference.host_may_write(page):
            assert answer is None
            self.lies[page] = 0, data[:TOKEN_BYTES]
            self.filled.add(page)
        else:
            assert answer == op.Fault(op.FaultKind.RMP_FAULT, self.spa(page), 0x8000_0003)

    @rule(first=st.sampled_from((3, PAGES_OF_2_MIB + 3)), count=st.integers(1, 9))
    def host_clears_some_pages(self, first: int, count: int) -> None:
        answer = self.host(op.HostClear(self.spa(first), count * PAGE_BYTES))
        taken = [page for page in range(first, first + count) if not self.reference.host_may_write(page)]
        assert answer == (op.Fault(op.FaultKind.RMP_FAULT, self.spa(first), 0x8000_0003) if taken else None)

    @rule(page=pages)
    def host_read(self, page: int) -> None:
        answer = self.host(op.HostRead(self.spa(page), PAGE_BYTES))
        assert isinstance(answer, bytes)
        key, data = self.lies[page]
        assert (answer[:TOKEN_BYTES] == data) is (key == 0)

    @rule(page=pages)
    def rmpread(self, page: int) -> None:
        answer = self.host(op.RmpRead(self.spa(page)))
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
        self.host(op.HostRead(self.lab.entries_spa(self.spa(page)), 16))

    @rule(page=pages, vm=vms)
    def vmrun(self, page: int, vm: str) -> None:
        """Enter a vCPU with this save area, which is then in use; if one runs already, a second on another thread."""
        thread = 2 * VMS[vm]
        thread += thread in self.running
        self.exits(thread)
        vcpu = EXTRA_VCPU + thread % 2
        area = op.VmcbWrite(vm, vcpu, VMS[vm], "SEV_SNP", self.spa(page))
        _, code = self.lab.host(area, op.VmRun(vm, vcpu, thread))
        expected = self.reference.vmrun(page, VMS[vm])
        # A page that its guest did not fill names a VMPL that there is not, most likely.
        known = page in self.filled and self.lies[page][0] == VMS[vm]
        assert code == expected or (code == -1 and expected == 0 and not known)
        if code == 0:
            self.running[thread] = page
            self.reference.in_use.add(page)

    def exits(self, thread: int) -> None:
        """What ran on a thread runs no more."""
        if thread in self.running:
            self.reference.in_use.discard(self.running.pop(thread))

    @rule(vm=vms, second=flags)
    def a_vcpu_stops(self, vm: str, second: bool) -> None:
        assert self.host(op.VmPreempt(vm, EXTRA_VCPU + second)) is None
        self.exits(2 * VMS[vm] + second)

    # The firmware, by its commands.

    @rule(page=pages, large=flags)
    def firmware_reclaims(self, page: int, large: bool) -> None:
        page = self.unit(page, large)[0]
        status = self.lab.firmware(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(self.spa(page) | large))
        assert status.name == self.reference.reclaim(page, large)

    @rule(page=pages, save_area=flags, give=rights)
    def firmware_launches(self, page: int, save_area: bool, give: int) -> None:
        ((vm, asid),) = LAUNCHING.items()
        kind = PageType.VMSA if save_area else PageType.NORMAL
        update = buffers.SnpLaunchUpdate(gctx(vm), kind << 1, self.spa(page), give << 8 | give << 16)
        lying = self.host(op.HostRead(self.spa(page), TOKEN_BYTES))
        assert isinstance(lying, bytes)
        status = self.lab.firmware(SnpCommand.LAUNCH_UPDATE, update)
        assert status.name == self.reference.launch_update(page, asid, (give, give, 0), save_area)
        if status.name == "SUCCESS":
            if self.lies[page][0]:
                self.filled.discard(page)  # what is ciphertext to the host is launched as it lies
            self.lies[page] = asid, lying

    @rule(page=pages)
    def firmware_unsmashes(self, page: int) -> None:
        page = self.unit(page, large=True)[0]
        status = self.lab.firmware(SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(self.spa(page)))
        assert status.name == self.reference.unsmash(page)

    @rule(page=pages, prepare=flags)
    def firmware_makes_a_context(self, page: int, prepare: bool) -> None:
        if prepare:
            self.rmpupdate(page, True, False, True, 0, 0)
        status = self.lab.firmware(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(self.spa(page)))
        assert status.name == self.reference.gctx_create(page)
        if status.name == "SUCCESS":  # It lies there in firmware's cipher, which is nobody's text.
            lying = self.host(op.HostRead(self.spa(page), TOKEN_BYTES))
            assert isinstance(lying, bytes)
            self.lies[page] = 0, lying
            self.filled.discard(page)

    @rule(page=pages)
    def firmware_ends_a_context(self, page: int) -> None:
        status = self.lab.firmware(SnpCommand.DECOMMISSION, buffers.GuestContextPage(self.spa(page)))
        assert status.name == self.reference.decommission(page)
        if status.name == "SUCCESS":
            self.lies[page] = 0, bytes(TOKEN_BYTES)
            self.filled.add(page)

    # Guests.

    @rule(page=pages, vm=vms, vmpl=vmpls, large=flags, validate=st.sampled_from((True, True, False)))
    def pvalidate(self, page: int, vm: str, vmpl: int, large: bool, validate: bool) -> None:
        page, length = self.unit(page, large)
        answer = said(self.guest(vm, vmpl, op.PValidate(page * PAGE_BYTES, length, large, validate)))
        code, unchanged = self.reference.pvalidate(page, page, VMS[vm], vmpl, large, validate)
        if isinstance(answer, op.PValidateResult):
            assert (answer.code, answer.unchanged) == (code, unchanged)
        else:
            assert answer == code

    @rule(page=pages, vm=vms, vmpl=vmpls, large=flags, other=st.integers(0, 3), give=rights, vmsa=flags)
    def rmpadjust(self, page: int, vm: str, vmpl: int, large: bool, other: int, give: int, vmsa: bool) -> None:
        page, length = self.unit(page, large)
        answer = said(self.guest(vm, vmpl, op.RmpAdjust(page * PAGE_BYTES, length, large, other, give, vmsa)))
        assert answer == self.reference.rmpadjust(page, page, VMS[vm], vmpl, large, other, give, vmsa)

    @rule(page=pages, vm=vms, vmpl=vmpls, other=st.integers(0, 3))
    def rmpquery(self, page: int, vm: str, vmpl: int, other: int) -> None:
        answer = said(self.guest(vm, vmpl, op.RmpQuery(page * PAGE_BYTES, other)))
        if isinstance(answer, op.RmpQueryResult):
            answer = answer.code or (answer.permissions, answer.large)
        assert answer == self.reference.rmpquery(page, page, VMS[vm], vmpl, other)

    @rule(page=pages, vm=vms, vmpl=vmpls, write=flags)
    def access(self, page: int, vm: str, vmpl: int, write: bool) -> None:
        """A guest writes a secret, or reads what is there."""
        secret = self.token(vm)
        data = secret.ljust(PAGE_BYTES, b"\0")
        one = op.Write(page * PAGE_BYTES, data) if write else op.Read(page * PAGE_BYTES, PAGE_BYTES)
        answer = said(self.guest(vm, vmpl, one))
        expected = self.reference.access(page, page, VMS[vm], vmpl, write, mapped_large=self.mapped_large)
        if expected:
            assert answer == expected
        elif write:
            assert answer is None
            self.secrets[secret] = vm
            self.lies[page] = VMS[vm], secret
            self.filled.add(page)
        else:
            assert isinstance(answer, bytes)
            key, lying = self.lies[page]
            assert (answer[:TOKEN_BYTES] == lying) is (key == VMS[vm])

    @rule(page=pages, vm=vms)
    def shared_write(self, page: int, vm: str) -> None:
        data = self.token("shared")
        answer = self.guest(vm, 0, op.Write(page * PAGE_BYTES, data, private=False))
        assert (answer is None) is self.reference.host_may_write(page)
        if answer is None:
            if self.lies[page][0]:
                self.filled.discard(page)
            self.lies[page] = 0, data
        else:
            assert answer == op.Fault(op.FaultKind.RMP_FAULT, page * PAGE_BYTES, 0x1_8000_0007)

    @rule(page=pages, vm=vms)
    def shared_read(self, page: int, vm: str) -> None:
        answer = self.guest(vm, 0, op.Read(page * PAGE_BYTES, TOKEN_BYTES, private=False))
        key, lying = self.lies[page]
        assert (answer == lying) is (key == 0)

    @invariant()
    def no_page_has_two_owners_and_entries_agree(self) -> None:
        for page in WATCHED:
            readers = ["host"] if self.host(op.HostClear(self.spa(page), 0)) is None else []
            assert bool(readers) is self.reference.host_may_write(page)
            for vm, asid in VMS.items():
                answer = said(self.guest(vm, 0, op.Read(page * PAGE_BYTES, TOKEN_BYTES)))
                expected = self.reference.access(page, page, asid, 0, False, mapped_large=self.mapped_large)
                assert answer == expected if expected else isinstance(answer, bytes)
                readers += [] if expected else [vm]
            assert len(readers) <= 1
            entry = self.lab.board.bus.rmp_entry(self.spa(page))
            here = self.reference.at(page)
            assert (entry.assigned, entry.large, entry.immutable, entry.gpa // PAGE_BYTES, entry.asid) == (
                here.assigned, here.large, here.immutable, here.gpa, here.asid,
            )  # fmt: skip
            assert (entry.vmsa, entry.validated, list(entry.vmpl_permissions)) == (
                here.vmsa, here.validated, here.permissions,
            )  # fmt: skip
        for vm, asid in VMS.items():
            owned = sum(one.asid == asid for one in self.reference.pages.values())
            assert self.lab.board.bus.rmp_pages_of_asid(asid) == owned + VMPLS, vm

    @invariant()
    def no_secret_lies_in_the_dimms(self) -> None:
        for page in WATCHED:
            assert self.port.dump(self.spa(page), TOKEN_BYTES) not in self.secrets


class Flat(Instructions):
    """The same on a part with a flat table; it has no RMPREAD. The host maps in 4 KiB."""

    product = "Milan"
    mapped_large = False

    @rule(page=pages)
    def rmpread(self, page: int) -> None:
        answer = self.host(op.RmpRead(self.spa(page)))
        assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


TestSegmented = Instructions.TestCase
TestSegmented.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestFlat = Flat.TestCase
TestFlat.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
