"""Intercepted instructions as a #VC handler does them: what of each is shown, and what of the answer is believed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node.cpuid_by_vcpu import BITS_BY_VCPU, merged
from node.cpuid_page import (
    CPUID_PAGE_BYTES,
    ENCRYPTION_LEAF,
    EXTENDED_LEAVES,
    encryption_bits,
    parse_cpuid_page,
)
from node.generation import Generation
from node.ghcb_msr import GhcbReason, LinuxReason, ReasonSet
from node.ghcb_page import GENERAL_PROTECTION, GhcbReply
from node.guest_ghcb import Asking, mmio_load, mmio_store, page_exit, string_in, string_out
from node.kernel_settings import KernelSettings
from node.nae_event import NaeEvent
from node.operations import (
    Answer,
    Cpuid,
    CpuidResult,
    Fault,
    FaultKind,
    GuestOperation,
    GuestWork,
    MmioLoad,
    MmioStore,
    PortIn,
    PortInString,
    PortOut,
    PortOutString,
    Rdmsr,
    Read,
    ReadDr7,
    UpkeepRead,
    Write,
    WriteBackCaches,
    WriteDr7,
    Wrmsr,
)
from node.vmexit import ExitCode

Answering = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Answer]
_Exiting = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Mapping[str, int]]
_WORD = 0xFFFF_FFFF
_DEVICE_BYTES, _MOST_DEVICE_BYTES = 8, 4096
"""Of one access to a device, and of an instruction that makes several."""
_EXTENDED_STATE_LEAF = 0xD
_XCR0_AT_RESET = 1
_NONE = (0, 0, 0, 0)
_IN = 1
"""EXITINFO1 of IN and OUT: bit 0 for IN, one of bits 4 to 6 for the width, the port in bits 31:16."""


class KernelPanic(Exception):
    """The kernel does not go on; ``reason`` is what it tells the hypervisor, its set first."""

    def __init__(self, why: str, reason_set: ReasonSet = ReasonSet.GHCB, reason: int = GhcbReason.GENERAL) -> None:
        super().__init__(why)
        self.reason = reason_set, reason


class UnexpectedException(KernelPanic):
    """#VC where nothing raises it, or an exception that the instruction cannot raise."""


@dataclass(frozen=True, slots=True)
class VcInstructions:
    """The instructions that a handler knows. Raises GhcbUntrusted and KernelPanic."""

    ghcb_gpa: int
    cpuid_gpa: int | None
    settings: KernelSettings
    generation: Generation

    @property
    def table(self) -> Mapping[type, tuple[ExitCode, Callable[..., Answering]]]:
        """The exit code of each, and how it is done."""
        return {
            Cpuid: (ExitCode.CPUID, self._cpuid),
            ReadDr7: (ExitCode.DR7_READ, self._read_dr7),
            WriteDr7: (ExitCode.DR7_WRITE, self._write_dr7),
            Rdmsr: (ExitCode.MSR, self._rdmsr),
            Wrmsr: (ExitCode.MSR, self._wrmsr),
            PortIn: (ExitCode.IOIO, self._port_in),
            PortOut: (ExitCode.IOIO, self._port_out),
            PortInString: (ExitCode.IOIO, self._port_in_string),
            PortOutString: (ExitCode.IOIO, self._port_out_string),
            WriteBackCaches: (ExitCode.WBINVD, self._write_back),
            MmioLoad: (ExitCode.NESTED_PAGE_FAULT, self._mmio_load),
            MmioStore: (ExitCode.NESTED_PAGE_FAULT, self._mmio_store),
        }

    def as_told(self, one: GuestOperation, code: int) -> Answering:
        """Do an instruction as what the hypervisor says that it was: a load or store is one of a device."""
        if code != ExitCode.NESTED_PAGE_FAULT or not isinstance(one, Read | Write):
            raise UnexpectedException(f"#VC {code:#x}")
        loaded = b""
        length = len(one.data) if isinstance(one, Write) else one.length
        if length > _MOST_DEVICE_BYTES:
            raise UnexpectedException(f"device access of {length} bytes")
        for at in range(0, length, _DEVICE_BYTES):
            size = min(_DEVICE_BYTES, length - at)
            if isinstance(one, Write):
                word = int.from_bytes(one.data[at : at + size], "little")
                yield from mmio_store(self.ghcb_gpa, one.gpa + at, word, size, self.settings)
            else:
                word = yield from mmio_load(self.ghcb_gpa, one.gpa + at, size, self.settings)
                loaded += word.to_bytes(size, "little")
        return None if isinstance(one, Write) else loaded

    def _cpuid(self, one: Cpuid) -> Answering:
        if self.cpuid_gpa is not None and self.settings.reads_cpuid_page:
            return (yield from self._by_page(self.cpuid_gpa, one))
        result = yield from self._asked(one)
        if self.settings.checks_cpuid and self._denies_encryption(one, result):
            raise KernelPanic("CPUID of the hypervisor", ReasonSet.LINUX, LinuxReason.CPUID_OF_HYPERVISOR)
        return result

    def _by_page(self, gpa: int, one: Cpuid) -> Answering:
        """A leaf of the page that firmware checked; of the hypervisor's what differs by vCPU alone."""
        bits = BITS_BY_VCPU.get(one.function)
        look, alone = UpkeepRead(gpa, CPUID_PAGE_BYTES, paid=True), GuestWork("core.vc_ns")
        # With an exit after it the #VC costs nothing of its own, for the round trip has the figure.
        page, *_ = yield (look, alone) if bits is None else (look,)
        try:
            entries = parse_cpuid_page(page) if isinstance(page, bytes) else None
        except ValueError:
            entries = None
        if entries is None:
            raise KernelPanic("no CPUID page", ReasonSet.LINUX, LinuxReason.CPUID_PAGE)
        leaves = {(entry.eax_in, entry.ecx_in): (entry.eax, entry.ebx, entry.ecx, entry.edx) for entry in entries}
        shown = leaves.get((one.function, one.index), _NONE)
        if bits is None:
            return CpuidResult(*shown)
        if one.function > leaves.get((one.function & EXTENDED_LEAVES, 0), _NONE)[0]:
            yield (alone,)
            return CpuidResult(*shown)
        told = yield from self._asked(one)
        return CpuidResult(*merged(shown, (told.eax, told.ebx, told.ecx, told.edx), bits))

    def _asked(self, one: Cpuid) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], CpuidResult]:
        registers = {"RAX": one.function, "RCX": one.index}
        if one.function == _EXTENDED_STATE_LEAF:
            registers |= {"XCR0": _XCR0_AT_RESET, "XSS": 0}
        found = yield from self._exit(NaeEvent.CPUID, registers)
        return CpuidResult(*[found[name] & _WORD for name in ("RAX", "RBX", "RCX", "RDX")])

    def _denies_encryption(self, one: Cpuid, result: CpuidResult) -> bool:
        """#VC is raised in guests with encrypted registers only, whatever a hypervisor says."""
        if one.function == EXTENDED_LEAVES:
            return result.eax < ENCRYPTION_LEAF
        bits = encryption_bits(self.generation)
        return one.function == ENCRYPTION_LEAF and result.eax & bits != bits

    def _read_dr7(self, _: ReadDr7) -> Answering:
        return (yield from self._exit(NaeEvent.DR7_READ, {}))["RAX"]

    def _write_dr7(self, one: WriteDr7) -> Answering:
        yield from self._exit(NaeEvent.DR7_WRITE, {"RAX": one.value})
        return None

    def _rdmsr(self, one: Rdmsr) -> Answering:
        reply = yield from self._page_exit(NaeEvent.MSR, registers={"RCX": one.index})
        if reply.exception is not None:
            return _raised(reply)
        return reply.registers["RAX"] & _WORD | (reply.registers["RDX"] & _WORD) << 32

    def _wrmsr(self, one: Wrmsr) -> Answering:
        shown = {"RCX": one.index, "RAX": one.value & _WORD, "RDX": one.value >> 32}
        # What comes back in registers that a WRMSR does not set is nobody's.
        reply = yield from self._page_exit(NaeEvent.MSR, 1, shown, ())
        return None if reply.exception is None else _raised(reply)

    def _port_in(self, one: PortIn) -> Answering:
        info = one.port << 16 | one.width << 4 | _IN
        found = yield from self._exit(NaeEvent.IOIO, {}, info)
        return found["RAX"] & (1 << 8 * one.width) - 1

    def _port_out(self, one: PortOut) -> Answering:
        info = one.port << 16 | one.width << 4
        reply = yield from self._page_exit(NaeEvent.IOIO, info, {"RAX": one.value}, ())
        return None if reply.exception is None else _raised(reply)

    def _port_in_string(self, one: PortInString) -> Answering:
        return (yield from string_in(self.ghcb_gpa, one.port, one.count, one.width, self.settings))

    def _port_out_string(self, one: PortOutString) -> Answering:
        yield from string_out(self.ghcb_gpa, one.port, one.data, one.width, self.settings)
        return None

    def _write_back(self, _: WriteBackCaches) -> Answering:
        yield from self._exit(NaeEvent.WBINVD, {})
        return None

    def _mmio_load(self, one: MmioLoad) -> Answering:
        return (yield from mmio_load(self.ghcb_gpa, one.gpa, one.length, self.settings))

    def _mmio_store(self, one: MmioStore) -> Answering:
        yield from mmio_store(self.ghcb_gpa, one.gpa, one.value, one.length, self.settings)
        return None

    def _exit(self, event: NaeEvent, registers: Mapping[str, int], info1: int = 0) -> _Exiting:
        """One exit that may not end in an exception."""
        reply = yield from self._page_exit(event, info1, registers)
        if reply.exception is not None:
            raise UnexpectedException(f"{event.name}: exception {reply.exception}")
        return reply.registers

    def _page_exit(
        self, event: NaeEvent, info1: int = 0, registers: Mapping[str, int] = MappingProxyType({}),
        outputs: tuple[str, ...] | None = None,
    ) -> Asking:
        return page_exit(
            self.ghcb_gpa, event, info1, registers=registers, outputs=outputs, settings=self.settings, instead=True
        )  # fmt: skip


def _raised(reply: GhcbReply) -> Fault:
    """The exception that an MSR or a port may end in; nothing else may."""
    if reply.exception != GENERAL_PROTECTION:
        raise UnexpectedException(f"exception {reply.exception}")
    return Fault(FaultKind.GENERAL_PROTECTION, 0)
