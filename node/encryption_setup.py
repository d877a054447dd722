"""How a kernel finds out where the C-bit is, and turns paging on with it: Linux' sme_enable and sev_verify_cbit.

CPUID says whether memory is encrypted and which bit of an entry asks for it. CPUID
may be the hypervisor's word, so the kernel compares it with SEV_STATUS, which is the
processor's, and tries the bit out: with paging off every store is private, so what
was stored then must read the same through an entry with the bit, and otherwise
through one without. Both checks are switches (rows 23 and 48 of the attack matrix).

The tables map the first GiB one to one, and once more without the C-bit from 1 GiB on.
Sources: Linux arch/x86/boot/startup/sme.c, arch/x86/kernel/sev_verify_cbit.S; APM
volume 2, 15.34.4.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from node.cpuid_page import ENCRYPTION_LEAF, encryption_bits
from node.generation import CAPABILITIES, Generation
from node.kernel_settings import KernelSettings
from node.operations import (
    Answer,
    Cpuid,
    CpuidResult,
    GuestOperation,
    ReadSevStatus,
    VirtualRead,
    Write,
    WriteControl,
)
from node.sev_status import expected_status
from psp.system_bus import PAGE_BYTES

TABLES_BYTES = 2 * PAGE_BYTES
SHARED_VIEW = 1 << 30
"""Where all memory is mapped again, without the C-bit."""

_SEV = encryption_bits(Generation.SEV)
_PRESENT, _WRITABLE, _LARGE = 1 << 0, 1 << 1, 1 << 7
_CR4_PAE, _EFER_LME, _CR0 = 1 << 5, 1 << 8, 1 << 31 | 1 << 0
_EFER_SVME = 1 << 12
"""KVM sets it in every save area; software of a guest leaves it (APM volume 2, 15.4)."""

Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]


class EncryptionMissing(Exception):
    """What the kernel was told of its encryption is not so; the VM must end."""


@dataclass(frozen=True, slots=True)
class EncryptionSetup:
    """One vCPU's way from paging off to long mode.

    ``tables_gpa`` are two private pages, ``canary_gpa`` is where ``canary`` goes, which nobody else can foresee.
    """

    generation: Generation
    settings: KernelSettings
    tables_gpa: int
    canary_gpa: int
    canary: bytes = field(repr=False)

    def run(self) -> Steps:
        """Turn paging on. Returns the mask that makes an entry private, 0 for none. Raises EncryptionMissing."""
        mask = yield from self._told()
        if self.settings.checks_sev_status:
            yield from self._compare(mask)
        yield from self._page(mask)
        if self.settings.checks_c_bit and CAPABILITIES[self.generation].key_per_vm:
            yield from self._try_out()
        return mask

    def _told(self) -> Steps:
        (leaf,) = yield (Cpuid(ENCRYPTION_LEAF),)
        if not isinstance(leaf, CpuidResult):
            raise EncryptionMissing(f"CPUID: {leaf!r}")
        return 1 << (leaf.ebx & 0x3F) if leaf.eax & _SEV else 0

    def _compare(self, mask: int) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]:
        (status,) = yield (ReadSevStatus(),)
        expected = expected_status(self.generation)
        if expected is not None and (status != expected or not mask):
            raise EncryptionMissing(f"SEV_STATUS {status!r}, CPUID's mask {mask:#x}")

    def _page(self, mask: int) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]:
        top, below = self.tables_gpa, self.tables_gpa + PAGE_BYTES
        leads, maps = _PRESENT | _WRITABLE, _PRESENT | _WRITABLE | _LARGE
        answers = yield (
            Write(self.canary_gpa, self.canary),
            Write(top, _entries(below | mask | leads)),
            Write(below, _entries(mask | maps, maps)),
            WriteControl("CR4", _CR4_PAE),
            WriteControl("CR3", top | mask),
            WriteControl("EFER", _EFER_SVME | _EFER_LME),
            WriteControl("CR0", _CR0),
        )
        if any(answer is not None for answer in answers):
            raise EncryptionMissing(f"paging: {answers!r}")

    def _try_out(self) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]:
        size = len(self.canary)
        own, without = yield (VirtualRead(self.canary_gpa, size), VirtualRead(SHARED_VIEW + self.canary_gpa, size))
        if own != self.canary or without == self.canary:
            raise EncryptionMissing("the C-bit is not where CPUID has it")


def _entries(*words: int) -> bytes:
    return b"".join([word.to_bytes(8, "little") for word in words]).ljust(PAGE_BYTES, b"\0")
