"""What the security processor sees of its machine: one small protocol, handed in.

The firmware reaches DRAM, the memory controllers' key slots, the RMP and the
facts of the cores only through this. Nothing here knows time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from psp.tsm.trusted_io import TrustedIo

PAGE_BYTES = 4096
LARGE_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RmpEntry:
    """One decoded entry of the reverse map table (APM volume 2, 15.36.3).

    ``large`` is the PAGE_SIZE bit (2 MiB). ``gpa`` is the guest-physical
    address of the page, ``asid`` 0 means hypervisor or firmware.
    ``vmpl_permissions`` holds one permission byte for each of VMPL 0 to 3.
    """

    assigned: bool = False
    large: bool = False
    immutable: bool = False
    gpa: int = 0
    asid: int = 0
    vmsa: bool = False
    validated: bool = False
    vmpl_permissions: tuple[int, int, int, int] = (0, 0, 0, 0)

    def pages_on(self, pages: int) -> RmpEntry:
        """The entry of a page so many 4 KiB pages on in the same range; of a page that is no guest's, the same."""
        if not pages or not self.asid:
            return self
        # ``replace`` takes four times as long, and every range of an instruction comes by here.
        gpa = self.gpa + pages * PAGE_BYTES
        return RmpEntry(
            self.assigned, self.large, self.immutable, gpa, self.asid, self.vmsa, self.validated, self.vmpl_permissions
        )


@dataclass(frozen=True, slots=True)
class RmpRegisters:
    """RMP_BASE, RMP_END and RMP_CFG of a core; RMP_CFG is 0 where there is none."""

    base: int
    end: int
    config: int = 0


@dataclass(frozen=True, slots=True)
class CoreConfiguration:
    """What firmware checks on every core before it initialises SNP.

    ``rmp`` holds each setting of the RMP's registers that any core has, once.
    """

    snp_enabled: bool
    mtrr_fix_dram_mod_enabled: bool
    hsave_pa_zero: bool
    smt_enabled: bool
    rmp: tuple[RmpRegisters, ...]
    vmpl_enabled: bool = True
    memory_encryption_enabled: bool = True
    """These two also where the part's firmware does not ask."""


@dataclass(frozen=True, slots=True)
class RmpPlacement:
    """Parts of memory, as (SPA, length), that the RMP takes, and whether all of them have entries in it."""

    ranges: tuple[tuple[int, int], ...]
    covers_itself: bool


@dataclass(frozen=True, slots=True)
class IommuBuffer:
    """Memory that an IOMMU writes by itself: a log, or where it reports that commands are done.

    ``least_bytes`` is the shortest that firmware accepts.
    """

    base: int
    length_bytes: int
    least_bytes: int


@dataclass(frozen=True, slots=True)
class IommuConfiguration:
    """One IOMMU as firmware finds it; ``buffers`` are those that are on."""

    enabled: bool
    supports_snp: bool
    buffers: tuple[IommuBuffer, ...]


@dataclass(frozen=True, slots=True)
class CpuidFacts:
    """What the processor's CPUID says that firmware holds a guest's CPUID page against.

    Position of the C-bit, bits of a physical address that memory encryption costs, and the width of one. ``masks`` are
    function, index and, of EAX to EDX, the bits that a guest may be shown; other leaves have no such rule.
    """

    c_bit: int
    reduced_bits: int
    address_bits: int
    masks: tuple[tuple[int, int, tuple[int, int, int, int]], ...] = ()


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What firmware knows of its machine beyond registers that software may write.

    The processor's CPUID 1 EAX, the frequency that time-stamp counters run at, whether threads share cores, whether all
    memory is encrypted with a key of its own (TSME), and whether DRAM has error-correcting codes.
    """

    cpuid_1_eax: int
    tsc_khz: int
    smt: bool
    tsme: bool
    ecc: bool


class SystemBus(Protocol):
    """The machine as the security processor reaches it. Addresses are SPAs."""

    @property
    def cpuid_facts(self) -> CpuidFacts:
        """What the cores themselves answer."""

    @property
    def machine_facts(self) -> MachineFacts:
        """What reports say of the machine."""

    @property
    def max_asid(self) -> int:
        """Highest ASID with a key slot (CPUID 8000001F ECX)."""

    @property
    def min_sev_asid(self) -> int:
        """Lowest ASID for a guest that is neither ES nor SNP (CPUID 8000001F EDX)."""

    @property
    def hardware_threads(self) -> int:
        """Of all cores; their APIC IDs are the numbers below it."""

    def core_complex(self, apic_id: int) -> int:
        """The complex that a hardware thread's core is in."""

    def run_only_on(self, asid: int, complexes: frozenset[int] | None) -> None:
        """Have cores of other complexes refuse a guest; None lets all cores run it."""

    @property
    def dram_bytes(self) -> int:
        """Size of the host's memory; an address at or above it is not there."""

    @property
    def memory_key_bytes(self) -> int:
        """Bytes of a guest's memory key: 16 for AES-128, 64 for AES-256 in XTS."""

    @property
    def can_hide_ciphertext(self) -> bool:
        """Whether the memory controllers can keep ciphertext of SNP guests from the cores."""

    def hide_ciphertext(self, max_snp_asid: int) -> None:
        """Keep ciphertext of guests with ASIDs up to this one from the cores; with 0 of none any more."""

    @property
    def power_readings_disabled(self) -> bool:
        """Whether software reads nothing of the energy that the cores use."""

    def disable_power_readings(self, *, disabled: bool) -> None:
        """Keep from software how much energy the cores use; or no more."""

    def core_configuration(self) -> CoreConfiguration:
        """The settings that must agree on all cores."""

    def read(self, spa: int, length: int) -> bytes:
        """Read DRAM without a key, as a host mapping with C=0 does."""

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """What ``read`` of whole pages would give, as an object that outlives the call and the offset in it.

        None where there is none. It saves copies, and what was worked out of an object before needs no working out.
        """

    def is_written(self, spa: int, length: int) -> bool:
        """Whether anybody ever wrote whole pages since they were last cleared."""

    def write(self, spa: int, data: bytes) -> None:
        """Write DRAM without a key."""

    def read_guest(self, spa: int, length: int, asid: int) -> bytes:
        """Read through the key of an ASID."""

    def write_guest(self, spa: int, data: bytes, asid: int) -> None:
        """Write through the key of an ASID."""

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """Write what lies at ``spa`` back through the key of an ASID; the range is whole blocks."""

    def take_trusted_region(self, spa: int, length: int) -> None:
        """Clear a region, let nobody but hardware reach it, and keep the integrity values of save areas there."""

    def give_back_trusted_region(self) -> None:
        """Clear the region and let everybody reach it; without one nothing."""

    def seal_save_area(self, spa: int, asid: int) -> None:
        """Keep the integrity value of an SEV-ES save area, as it reads through an ASID's key."""

    def save_area_is_sealed(self, spa: int, asid: int) -> bool:
        """Whether an SEV-ES save area reads through an ASID's key as it did when its value was kept."""

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a guest's memory key into the slot of its ASID in every controller."""

    def remove_key(self, asid: int) -> None:
        """Take the key of an ASID out of every controller."""

    def wbinvd_count(self) -> int:
        """How many times WBINVD has completed on all cores since boot."""

    def fabric_locked(self) -> bool:
        """Whether the data fabric's routes are locked."""

    def rmp_placement(self) -> RmpPlacement | None:
        """Where the registers of the cores put the RMP; None if no table can be there."""

    def iommus(self) -> tuple[IommuConfiguration, ...]:
        """Every IOMMU of the host."""

    def iommus_enforce(self) -> None:
        """Let every IOMMU check against the RMP, and lock what decides about it; logs that are off are parked."""

    def iommus_release(self) -> None:
        """Let the IOMMUs check no longer."""

    def rmp_covers(self, spa: int, pages: int = 1) -> bool:
        """Whether so many pages have RMP entries."""

    def rmp_initialise(self) -> None:
        """Zero every entry (SNP_INIT with INIT_RMP)."""

    def rmp_entry(self, spa: int) -> RmpEntry:
        """The effective entry of the 4 KiB page at ``spa``."""

    def rmp_run(self, spa: int, pages: int) -> RmpEntry | None:
        """The entry at ``spa`` if those of so many pages are the same, a guest's GPAs following; None if not sure."""

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        """Replace the entry of the page at ``spa``; size taken from ``entry.large``."""

    def rmp_set_pages(self, spa: int, length: int, entry: RmpEntry) -> None:
        """Replace the entries of the 4 KiB pages of a range by one; where it names a guest, GPAs follow."""

    def rmp_pages_of_asid(self, asid: int) -> int:
        """Number of 4 KiB pages assigned to an ASID (the RMP's per-ASID counter)."""

    @property
    def trusted_io(self) -> TrustedIo | None:
        """Root ports and the secure device table; None on a machine without SEV-TIO."""
