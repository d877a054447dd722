"""The hypervisor's answer to VMGEXIT: it takes the guest's word for nothing and acts on one copy of what it says.

A message of the MSR protocol is answered in the MSR. With a GHCB page the server
reads the page once, clears its valid bits, parses the copy, acts, and writes outputs.
What is malformed gets the specification's reason and changes nothing. As in KVM
(arch/x86/kvm/svm/sev.c, sev_handle_vmgexit), an event that this hypervisor does not
offer is refused like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from functools import lru_cache

from node import ghcb_msr as msr
from node import nae_event as nae
from node import operations as op
from node.ap_creation import serve_ap_creation
from node.ap_jump_table import serve_jump_table
from node.ap_reset_hold import hold_by_event, hold_by_message
from node.apic_id_list import serve_apic_ids
from node.cpu_model import shown_leaves
from node.cpuid_by_vcpu import with_apic_id
from node.cpuid_page import EXTENDED_LEAVES, CpuidEntry
from node.device_access import device_access
from node.generation import CAPABILITIES, Generation
from node.ghcb_page import (
    GENERAL_PROTECTION,
    GHCB_BYTES,
    SHARED_BUFFER,
    BadInput,
    GhcbExit,
    GhcbRefused,
    Outcome,
    Scratch,
    build_reply,
    exception_event,
    parse_exit,
    refusal,
)
from node.guest_memory_map import Range
from node.guest_requests import BadPage, GuestRequests
from node.hypervisor_port import Answers, Batch, Reply
from node.interrupt_command import X2APIC_ICR
from node.interrupt_server import ICR_MODES, InterruptServer
from node.launched_vm import LaunchedVm
from node.nae_event import NaeEvent
from node.nae_reply import NOTHING, NaeReply, Serve
from node.page_state_list import GENERIC_FAILURE, PageListRefused, PageOperation, PageStateList
from node.product import Product
from node.tio_host import TioHost
from node.tio_server import TioServer
from node.vmpl_switch import announce, run_vmpl
from psp.system_bus import PAGE_BYTES

VALID_BITMAP, VALID_BITMAP_BYTES = 0x3F0, 16
REFUSED = 1
"""Error of a page state change or VMPL switch by MSR that is not made; any but 0 will do."""

_ALL_ONES = 0xFF
"""What a bus reads where no device answers."""

PageChange = Callable[[str, op.PageStateChange], Reply]


def terminated(reason_set: int, reason_code: int) -> int:
    """The reply that ends a VM: a negative number in place of the MSR's value."""
    return -1 - (reason_set << 8 | reason_code)


_GP = NaeReply(Outcome.EXCEPTION, exception_event(GENERAL_PROTECTION, 0))


class GhcbServer:
    """Serves the exits of one hypervisor's guests; what it keeps of a guest is in the guest's record.

    ``announces_tio``: a VM with trusted devices is told so in bit 7 of the features, as patches that are not merged
    have it. Later texts may give the bit another meaning; without, it is never set.
    """

    def __init__(
        self,
        product: Product,
        change: PageChange,
        room: Callable[[LaunchedVm], int],
        tio: TioHost,
        *,
        announces_tio: bool = True,
    ) -> None:
        self._c_bit = product.c_bit
        self.requests = GuestRequests(room)
        self.leaves = dict(_leaves(product))
        """What guests of each generation are told by CPUID, but for those whose record says otherwise."""
        self._change = change
        self.interrupts = InterruptServer()
        self.tio = TioServer(tio, self.requests)
        self._announces_tio = announces_tio
        self._messages: Mapping[type[msr.MsrMessage], Callable[..., Reply]] = {
            msr.SevInfoRequest: self._sev_info,
            msr.CpuidRequest: self._cpuid_message,
            msr.ApResetHoldRequest: self._hold_message,
            msr.PreferredGhcbRequest: self._preferred,
            msr.RegisterGhcbRequest: self._register,
            msr.PageStateRequest: self._page_state,
            msr.RunVmplRequest: self._run_vmpl,
            msr.FeaturesRequest: self._features_message,
            msr.TerminateRequest: self._terminate,
            msr.GhcbPageAt: self._page,
        }
        self._events: Mapping[int, Callable[..., Serve]] = {
            NaeEvent.CPUID: self._cpuid_event,
            NaeEvent.MSR: self._msr,
            NaeEvent.IOIO: self._io,
            NaeEvent.MMIO_READ: self._mmio,
            NaeEvent.MMIO_WRITE: self._mmio,
            NaeEvent.DR7_READ: self._dr7_read,
            NaeEvent.DR7_WRITE: self._dr7_write,
            NaeEvent.WBINVD: self._write_back,
            NaeEvent.INVD: self._ignore,
            NaeEvent.MONITOR: self._ignore,
            NaeEvent.MWAIT: self._ignore,
            NaeEvent.NMI_COMPLETE: self._ignore,
            NaeEvent.RDPMC: self._rdpmc,
            NaeEvent.VMMCALL: self._vmmcall,
            NaeEvent.APIC_ID_LIST: self._apic_ids,
            NaeEvent.PAGE_STATE_CHANGE: self._page_states,
            NaeEvent.GUEST_REQUEST: self._guest_request,
            NaeEvent.EXTENDED_GUEST_REQUEST: self._guest_request,
            NaeEvent.AP_CREATION: self._ap_creation,
            NaeEvent.AP_JUMP_TABLE: self._ap_jump_table,
            NaeEvent.AP_RESET_HOLD: self._hold_event,
            NaeEvent.RUN_VMPL: self._run_vmpl_event,
            NaeEvent.HYPERVISOR_FEATURES: self._features_event,
            NaeEvent.TERMINATION: self._termination,
            **self.interrupts.events,
            **self.tio.events,
        }

    def serve(self, vm: str, record: LaunchedVm, vcpu: int, value: int) -> Reply:
        """Answer an exit whose MSR holds ``value``: the MSR's new value, or what ``terminated`` or a hold gives.

        A value that is no request is left as it is, which is no response to anything.
        """
        try:
            request = msr.parse_request(value)
        except msr.GhcbMsrError:
            return value
        handler = self._messages.get(type(request))
        if handler is None:
            return value
        return (yield from handler(vm, record, vcpu, request))

    # The MSR protocol.

    def _sev_info(self, _vm: str, _record: LaunchedVm, _vcpu: int, _asked: msr.SevInfoRequest) -> Reply:
        least, most = msr.PROTOCOL_VERSIONS
        return msr.SevInfo(most, least, self._c_bit).value
        yield ()

    def _cpuid_message(self, _vm: str, record: LaunchedVm, vcpu: int, asked: msr.CpuidRequest) -> Reply:
        return msr.CpuidValue(self.leaf(record, vcpu, asked.function, 0)[asked.register], asked.register).value
        yield ()

    def _hold_message(self, _vm: str, record: LaunchedVm, vcpu: int, _asked: msr.ApResetHoldRequest) -> Reply:
        return hold_by_message(record, vcpu)
        yield ()

    def _preferred(self, _vm: str, _record: LaunchedVm, _vcpu: int, _asked: msr.PreferredGhcbRequest) -> Reply:
        return msr.PreferredGhcb(msr.NO_PREFERENCE).value
        yield ()

    def _register(self, _vm: str, record: LaunchedVm, vcpu: int, asked: msr.RegisterGhcbRequest) -> Reply:
        if record.page_spa(asked.gfn * PAGE_BYTES) is None:
            return msr.RegisteredGhcb(msr.NO_PREFERENCE).value
        record.ghcbs[record.seat(vcpu)] = asked.gfn
        return msr.RegisteredGhcb(asked.gfn).value
        yield ()

    def _page_state(self, vm: str, record: LaunchedVm, _vcpu: int, asked: msr.PageStateRequest) -> Reply:
        error = REFUSED
        if _changes_pages(record) and asked.operation in _BY_MSR:
            shared = asked.operation == msr.MsrPageState.SHARED
            error = yield from self._change(vm, op.PageStateChange(asked.gfn * PAGE_BYTES, PAGE_BYTES, shared))
        return msr.PageStateResult(error).value

    def _run_vmpl(self, vm: str, record: LaunchedVm, vcpu: int, asked: msr.RunVmplRequest) -> Reply:
        entered = yield from run_vmpl(vm, record, vcpu, asked.vmpl)
        return msr.RunVmplResult(0 if entered else REFUSED).value

    def _features_message(self, vm: str, record: LaunchedVm, _vcpu: int, _asked: msr.FeaturesRequest) -> Reply:
        return msr.Features(self._features(vm, record)).value
        yield ()

    def _terminate(self, _vm: str, _record: LaunchedVm, _vcpu: int, asked: msr.TerminateRequest) -> Reply:
        return terminated(asked.reason_set, asked.reason_code)
        yield ()

    # The page.

    def _page(self, vm: str, record: LaunchedVm, vcpu: int, asked: msr.GhcbPageAt) -> Reply:
        value, spa = asked.value, record.page_spa(asked.gfn * PAGE_BYTES)
        if spa is None:
            return value
        # The page must be shared: a store to a private one faults, and then nothing is done.
        clear = op.HostWrite(spa + VALID_BITMAP, bytes(VALID_BITMAP_BYTES))
        page, refused = yield (op.HostRead(spa, GHCB_BYTES), clear)
        if refused is not None or not isinstance(page, bytes):
            return value
        try:
            reply = yield from self._event(vm, record, vcpu, asked, page)
        except GhcbRefused as found:
            yield (op.HostWrite(spa, refusal(found.reason)),)
            return value
        if reply.ends:
            return reply.ends
        yield (op.HostWrite(spa, build_reply(reply.info1, reply.info2, reply.registers or {})),)
        return value

    def _event(self, vm: str, record: LaunchedVm, vcpu: int, asked: msr.GhcbPageAt, page: bytes) -> Serve:
        if _must_register(record) and record.ghcbs.get(record.seat(vcpu)) != asked.gfn:
            raise GhcbRefused(BadInput.NOT_REGISTERED, "GHCB")
        exit_ = parse_exit(page, asked.value)
        request = nae.parse_request(exit_)
        handler = self._events.get(exit_.code)
        if handler is None:
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        return (yield from handler(vm, record, vcpu, exit_, request))

    def _cpuid_event(self, _vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.CpuidQuery) -> Serve:
        values = self.leaf(record, vcpu, asked.function, asked.index)
        return NaeReply(registers=dict(zip(("RAX", "RBX", "RCX", "RDX"), values, strict=True)))
        yield ()

    def _msr(self, vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.MsrRequest) -> Serve:
        # One MSR is emulated: of others the guest gets what a processor without them would raise.
        if asked.write and asked.index == X2APIC_ICR:
            try:
                return (yield from self.interrupts.send(vm, record, vcpu, asked.value, ICR_MODES))
            except GhcbRefused:
                return _GP
        return _GP

    def _ignore(self, *_: object) -> Serve:
        # As KVM: a guest's INVD must not undo others' stores, MONITOR and MWAIT wait for nothing, and NMIs that came
        # do not hold back others here.
        return NOTHING
        yield ()

    def _rdpmc(self, *_: object) -> Serve:
        return _GP  # guests have no counters
        yield ()

    def _vmmcall(
        self, _vm: str, _record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.RegistersRequest
    ) -> Serve:
        # No hypercall is known, and none is a program's to make.
        refused = _KVM_EPERM if asked.registers["CPL"] else _KVM_ENOSYS
        return NaeReply(registers={"RAX": -refused & (1 << 64) - 1})
        yield ()

    def _apic_ids(
        self, _vm: str, record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.ApicIdRequest
    ) -> Serve:
        if not _changes_pages(record):
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        return (yield from serve_apic_ids(record, asked))

    def _hold_event(self, _vm: str, record: LaunchedVm, vcpu: int, exit_: GhcbExit, _asked: object) -> Serve:
        return hold_by_event(record, vcpu, exit_)
        yield ()

    def _io(self, _vm: str, record: LaunchedVm, _vcpu: int, exit_: GhcbExit, asked: nae.IoRequest) -> Serve:
        if asked.write:
            return NOTHING
        if asked.scratch is not None:
            yield from self._lay(record, exit_, asked.scratch, ((0, bytes([_ALL_ONES]) * asked.scratch.length),))
            return NOTHING
        return NaeReply(registers={"RAX": (1 << 8 * asked.width) - 1})

    def _mmio(self, vm: str, record: LaunchedVm, vcpu: int, exit_: GhcbExit, asked: nae.MmioRequest) -> Serve:
        if asked.write:
            stored = yield from self._copy(record, exit_, asked.scratch)
            value = int.from_bytes(stored, "little")
            yield from device_access(record, vm, vcpu, asked.gpa, asked.length, value)
            return NOTHING
        found = yield from device_access(record, vm, vcpu, asked.gpa, asked.length, None)
        yield from self._lay(record, exit_, asked.scratch, ((0, found.to_bytes(asked.length, "little")),))
        return NOTHING

    def _dr7_read(self, _vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, _asked: object) -> Serve:
        return NaeReply(registers={"RAX": record.dr7.get(record.seat(vcpu), _DR7_AT_RESET)})
        yield ()

    def _dr7_write(
        self, _vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.RegistersRequest
    ) -> Serve:
        value = asked.registers["RAX"]
        if value >> 32:
            return _GP  # as MOV to DR7 raises it
        record.dr7[record.seat(vcpu)] = value
        return NOTHING
        yield ()

    def _write_back(self, _vm: str, _record: LaunchedVm, _vcpu: int, _exit: GhcbExit, _asked: object) -> Serve:
        yield (op.Wbinvd(),)
        return NOTHING

    def _features_event(self, vm: str, record: LaunchedVm, _vcpu: int, _exit: GhcbExit, _asked: object) -> Serve:
        return NaeReply(info2=self._features(vm, record))
        yield ()

    def _termination(self, _vm: str, _record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.Termination) -> Serve:
        return NaeReply(ends=terminated(asked.reason_set, asked.reason_code))
        yield ()

    def _ap_jump_table(
        self, _vm: str, record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.InfoRequest
    ) -> Serve:
        return serve_jump_table(record, asked)
        yield ()

    def _guest_request(
        self, _vm: str, record: LaunchedVm, _vcpu: int, exit_: GhcbExit, asked: nae.GuestRequest
    ) -> Serve:
        if not record.gctx:
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        extended = exit_.code == NaeEvent.EXTENDED_GUEST_REQUEST
        try:
            done = yield from self.requests.ask(record, asked, extended=extended)
        except BadPage:
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1") from None
        pages = asked.data_pages if done.pages_needed is None else done.pages_needed
        return NaeReply(info2=done.info2, registers={"RBX": pages} if extended else None)

    def _ap_creation(self, vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.ApCreation) -> Serve:
        if not _changes_pages(record):
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        if not asked.vmpl:
            yield from serve_ap_creation(vm, record, vcpu, asked)
        elif not announce(record, asked):
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        return NOTHING

    def _run_vmpl_event(self, vm: str, record: LaunchedVm, vcpu: int, _exit: GhcbExit, asked: nae.RunVmpl) -> Serve:
        if record.vmpls is None:
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        if not (yield from run_vmpl(vm, record, vcpu, asked.vmpl)):
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        return NOTHING

    def _page_states(
        self, vm: str, record: LaunchedVm, _vcpu: int, exit_: GhcbExit, asked: nae.PageStateRequest
    ) -> Serve:
        if not _changes_pages(record):
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        data = yield from self._copy(record, exit_, asked.scratch)
        try:
            pages = PageStateList.parse(data)
        except PageListRefused as found:
            return NaeReply(info2=found.status)
        self._keeps_its_list(pages, asked.scratch)
        current, status = pages.current, 0
        for run in pages.runs():
            # PSMASH and UNSMASH are hints, which KVM ignores.
            if run.operation in _BY_MSR and run.length:
                shared = run.operation == PageOperation.SHARED
                if (yield from self._change(vm, op.PageStateChange(run.gpa, run.length, shared))):
                    status = GENERIC_FAILURE
                    break
            current = run.current
        yield from self._lay(record, exit_, asked.scratch, pages.progress(current))
        return NaeReply(info2=status)

    @staticmethod
    def _keeps_its_list(pages: PageStateList, scratch: Scratch) -> None:
        """Progress is laid over the list, so its pages must stay shared. Raises GhcbRefused."""
        first, end = scratch.gpa, scratch.gpa + scratch.length
        for run in pages.runs():
            if run.operation == PageOperation.PRIVATE and run.gpa < end and first < run.gpa + run.length:
                raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")

    def _features(self, vm: str, record: LaunchedVm) -> int:
        tio = self._announces_tio and self.tio.offers(vm, record)
        return _features(record) | (msr.HypervisorFeature.TIO if tio else 0)

    def leaf(self, record: LaunchedVm, vcpu: int, function: int, index: int) -> tuple[int, int, int, int]:
        """A leaf that guests have, else zeros, as processors answer to leaves that they do not have."""
        leaves = self.leaves[record.generation] if record.leaves is None else record.leaves
        shown = _leaf(leaves, function, index)
        is_there = function <= _leaf(leaves, function & EXTENDED_LEAVES, 0)[0]
        return with_apic_id(function, shown, vcpu) if is_there else shown

    # Scratch memory.

    def _copy(self, record: LaunchedVm, exit_: GhcbExit, scratch: Scratch) -> Generator[Batch, Answers, bytes]:
        """One copy of it: what the page held when it was read, or one look at memory elsewhere."""
        if scratch.offset is not None:
            start = scratch.offset - SHARED_BUFFER
            return exit_.buffer[start : start + scratch.length]
        answers = yield tuple(op.HostRead(spa, length) for _, spa, length in _pieces(record, scratch))
        if not all(isinstance(answer, bytes) for answer in answers):
            raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")
        return b"".join(answers)  # type: ignore[arg-type]  # all are bytes

    def _lay(
        self, record: LaunchedVm, exit_: GhcbExit, scratch: Scratch, parts: Iterable[tuple[int, bytes]]
    ) -> Generator[Batch, Answers, None]:
        """Write into it, by offset."""
        pieces = _pieces(record, scratch)
        writes = []
        for offset, data in parts:
            at, end = scratch.gpa + offset, scratch.gpa + offset + len(data)
            for gpa, spa, length in pieces:
                first, last = max(gpa, at), min(gpa + length, end)
                if first < last:
                    writes.append(op.HostWrite(spa + first - gpa, data[first - at : last - at]))
        if writes and any(answer is not None for answer in (yield tuple(writes))):
            raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")


@lru_cache(maxsize=64)
def _leaves(product: Product) -> Mapping[Generation, tuple[CpuidEntry, ...]]:
    return {one: shown_leaves(product, one) for one in Generation}


_DR7_AT_RESET = 0x400
_KVM_EPERM, _KVM_ENOSYS = 1, 1000
"""Of Linux's include/uapi/linux/kvm_para.h."""
_BY_MSR = frozenset({msr.MsrPageState.PRIVATE, msr.MsrPageState.SHARED})


def _leaf(leaves: Iterable[CpuidEntry], function: int, index: int) -> tuple[int, int, int, int]:
    for one in leaves:
        if (one.eax_in, one.ecx_in) == (function, index):
            return one.eax, one.ebx, one.ecx, one.edx
    return 0, 0, 0, 0


def _changes_pages(record: LaunchedVm) -> bool:
    return CAPABILITIES[record.generation].rmp


def _must_register(record: LaunchedVm) -> bool:
    return CAPABILITIES[record.generation].rmp


def _features(record: LaunchedVm) -> int:
    features = msr.HypervisorFeature(0)
    if CAPABILITIES[record.generation].rmp:
        # Every part with SNP has restricted injection, and ``interrupts`` keeps to it.
        features |= msr.HypervisorFeature.SNP | msr.HypervisorFeature.AP_CREATION
        features |= msr.HypervisorFeature.RESTRICTED_INJECTION | msr.HypervisorFeature.APIC_ID_LIST
    if record.vmpls is not None:
        features |= msr.HypervisorFeature.MULTI_VMPL
    return int(features)


def _pieces(record: LaunchedVm, scratch: Scratch) -> list[tuple[int, int, int]]:
    pieces = list(record.backing(Range(scratch.gpa, scratch.length)))
    if sum(length for _, _, length in pieces) != scratch.length:
        raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")
    return pieces
