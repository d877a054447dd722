"""The machine as its security processor reaches it: the board's side of ``SystemBus``."""

from __future__ import annotations

from functools import cache

from node.cached_controller import CachedController
from node.ciphertext_hiding import CiphertextHiding, MemoryReader
from node.core_msrs import MEM_ENCRYPTION_MODE_EN, MFDM, SNP_EN, VMPL_EN, CoreMsrs, Msr
from node.cpu_features import allowed_registers, features_of
from node.data_fabric import DataFabric
from node.dram import Dram
from node.energy_counters import EnergyCounters
from node.fast_registers import FastRegisters
from node.iommu import Iommu
from node.memory_controller import HOST_KEY, MemoryController
from node.platform import HostMode, Platform
from node.product import Product
from node.rmp import ReverseMapTable
from node.rmp_layout import RmpLayout
from node.rmp_registers import layout_of_registers
from node.save_area_seals import SaveAreaSeals
from node.vmsa import VMSA_BYTES
from node.walked_memory import WalkedMemory
from psp.system_bus import (
    PAGE_BYTES,
    CoreConfiguration,
    CpuidFacts,
    IommuConfiguration,
    MachineFacts,
    RmpEntry,
    RmpPlacement,
)
from psp.tsm.trusted_io import TrustedIo


@cache  # Hosts of a fleet are of few products.
def _cpuid_facts(product: Product) -> CpuidFacts:
    allowed = allowed_registers(features_of(product.name, product.cpuid))
    masks = tuple([(*leaf, registers) for leaf, registers in allowed.items()])
    return CpuidFacts(product.c_bit, product.reduced_bits, product.physical_address_bits, masks)


class HostSystemBus:
    """Wires the security processor to a board's DRAM, key slots, RMP, cores and IOMMU."""

    def __init__(
        self,
        product: Product,
        min_sev_asid: int,
        dram: Dram,
        controller: MemoryController,
        walks: WalkedMemory,
        rmp: ReverseMapTable | None,
        platform: Platform,
        msrs: CoreMsrs,
        iommu: Iommu,
        data_fabric: DataFabric,
    ) -> None:
        self.max_asid = product.max_asid
        self.min_sev_asid = min_sev_asid
        self.cpuid_facts = _cpuid_facts(product)
        self.machine_facts = MachineFacts(
            product.cpuid_1_eax,
            product.base_hz // 1000,
            smt=product.threads_per_core > 1,
            tsme=platform.mode is HostMode.TSME,
            ecc=True,  # Servers of these lines take registered modules only, all of which have it.
        )
        self.dram_bytes = dram.size_bytes
        self._mmio = product.rmp.mmio
        self._asked = product.rmp
        self.rmp = rmp
        """Where SNP_EN found it; the board puts another here if the registers said otherwise."""
        self.memory_key_bytes = controller.key_bytes
        self.seals = SaveAreaSeals(dram)
        self.wbinvds = 0
        """WBINVDs that all cores have completed."""
        keyed = product.rmp.under_host_key and msrs.all_have(MEM_ENCRYPTION_MODE_EN)
        self._rmp_key = HOST_KEY if keyed else 0
        self._smt = product.threads_per_core > 1
        self.hardware_threads = product.threads
        self._threads_per_complex = product.threads_per_core * product.cores_per_complex
        self._complexes: dict[int, frozenset[int]] = {}
        """Where guests may run, by ASID, of those that may not run everywhere."""
        self._msrs = msrs
        self._iommu = iommu
        self.fast_registers = FastRegisters(
            reachable=product.turns_psp_accesses,
            least_privilege=platform.psp_least_privilege,
            release_iommu=iommu.release,
        )
        self._data_fabric = data_fabric
        caches = controller if isinstance(controller, CachedController) else None
        self._controller = controller if caches is None else caches.fabric(caches.firmware_snoop)
        self._stopped_cores = caches if platform.rmp_init_barrier else None
        self.can_hide_ciphertext = product.can_hide_ciphertext and rmp is not None
        self.energy = EnergyCounters(product.threads_per_core)
        self._cores_memory = controller
        self._walks = walks
        self.host_view: MemoryReader = controller
        """Memory as cores read it without a guest's key."""
        self.trusted_io: TrustedIo | None = None
        """Root ports and the secure device table, on a board that has them."""

    def hide_ciphertext(self, max_snp_asid: int) -> None:
        """Answer cores with ones in place of ciphertext of SNP guests up to an ASID; with 0 as before."""
        self.host_view = self._cores_memory
        self._walks.hide(None)
        if max_snp_asid and self.rmp is not None:
            self.host_view = CiphertextHiding(self._cores_memory, self.rmp, max_snp_asid)
            self._walks.hide(CiphertextHiding(self._walks.memory, self.rmp, max_snp_asid))

    @property
    def power_readings_disabled(self) -> bool:
        """Whether the host reads nothing of the energy that its cores use."""
        return self.energy.disabled

    def disable_power_readings(self, *, disabled: bool) -> None:
        """Tell the host no more of it; or again."""
        self.energy.disabled = disabled

    def core_configuration(self) -> CoreConfiguration:
        """What the cores' registers say."""
        msrs = self._msrs
        return CoreConfiguration(
            snp_enabled=msrs.all_have(SNP_EN),
            mtrr_fix_dram_mod_enabled=msrs.all_have(MFDM),
            hsave_pa_zero=msrs.values(Msr.VM_HSAVE_PA) == (0,),
            smt_enabled=self._smt,
            rmp=msrs.rmp_registers(),
            vmpl_enabled=msrs.all_have(VMPL_EN) or not self._asked.init_needs_vmpl_en,
            memory_encryption_enabled=(
                msrs.all_have(MEM_ENCRYPTION_MODE_EN) or not self._asked.init_needs_memory_encryption
            ),
        )

    def rmp_layout(self) -> RmpLayout | None:
        """Where the cores' registers put the RMP; None if they differ, or no table can be there."""
        settings = self._msrs.rmp_registers()
        return layout_of_registers(settings[0], self._controller, self._rmp_key) if len(settings) == 1 else None

    def fabric_locked(self) -> bool:
        """Whether boot firmware has locked the routes."""
        return self._data_fabric.locked

    def rmp_placement(self) -> RmpPlacement | None:
        """The same, as firmware wants it."""
        layout = self.rmp_layout()
        if layout is None or self.rmp is None or layout != self.rmp.layout:
            return None
        ranges = layout.ranges()
        covered = all(
            layout.covers(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)) for spa, length in ranges
        )
        return RmpPlacement(ranges, covered)

    def iommus(self) -> tuple[IommuConfiguration, ...]:
        """The one IOMMU there is."""
        return (self._iommu.configuration(),)

    def iommus_enforce(self) -> None:
        """SNP on in the IOMMU."""
        self._iommu.enforce()

    def iommus_release(self) -> None:
        """SNP off in the IOMMU."""
        self._iommu.release()

    def read(self, spa: int, length: int) -> bytes:
        """Read DRAM without a key."""
        return self._controller.read(spa, length, 0)

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """What somebody laid down and nobody has looked at."""
        return None if self._controller is not self._cores_memory else self._cores_memory.source(spa, length)

    def is_written(self, spa: int, length: int) -> bool:
        """Whether there are bytes of these pages."""
        return bool(self._cores_memory.written_runs(spa, length, 0))

    def write(self, spa: int, data: bytes) -> None:
        """Write DRAM without a key."""
        page = self.fast_registers.page
        if page is not None and spa // PAGE_BYTES * PAGE_BYTES == page:
            self.fast_registers.store(spa - page, data)
            return
        self._controller.write(spa, data, 0)

    def read_guest(self, spa: int, length: int, asid: int) -> bytes:
        """Read through an ASID's key."""
        return self._controller.read(spa, length, asid)

    def write_guest(self, spa: int, data: bytes, asid: int) -> None:
        """Write through an ASID's key."""
        self._controller.lay(spa, data, asid)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """Write memory back through an ASID's key."""
        self._controller.encrypt_in_place(spa, length, asid)

    def seal_save_area(self, spa: int, asid: int) -> None:
        """Keep a save area's integrity value."""
        self.seals.seal(asid, spa, self._controller.read(spa, VMSA_BYTES, asid))

    def save_area_is_sealed(self, spa: int, asid: int) -> bool:
        """Whether a save area is as hardware or firmware left it."""
        return self.seals.fits(asid, spa, self._controller.read(spa, VMSA_BYTES, asid))

    def core_complex(self, apic_id: int) -> int:
        """Cores are numbered by complex, and hardware threads by core."""
        return apic_id // self._threads_per_complex

    def run_only_on(self, asid: int, complexes: frozenset[int] | None) -> None:
        """Hold a guest to complexes, or let it run everywhere."""
        if complexes is None:
            self._complexes.pop(asid, None)
        else:
            self._complexes[asid] = complexes

    def may_run_on(self, asid: int, thread: int) -> bool:
        """Whether a hardware thread's core accepts a guest."""
        complexes = self._complexes.get(asid) if self._complexes else None
        return complexes is None or self.core_complex(thread) in complexes

    def take_trusted_region(self, spa: int, length: int) -> None:
        """Keep a region from everybody else, for save areas' values."""
        self._cores_memory.reserve(0, 0)
        self.seals.take_region(spa, length)
        self._cores_memory.reserve(spa, length)

    def give_back_trusted_region(self) -> None:
        """The region is memory like any other again, and zero."""
        self.seals.give_back_region()
        self._cores_memory.reserve(0, 0)

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a key slot."""
        self._controller.install_key(asid, key)

    def remove_key(self, asid: int) -> None:
        """Empty a key slot."""
        self._controller.remove_key(asid)
        self.seals.forget(asid)

    def wbinvd_count(self) -> int:
        """Completed WBINVDs on all cores."""
        return self.wbinvds

    def rmp_covers(self, spa: int, pages: int = 1) -> bool:
        """Whether there is an RMP and the pages are in it, of memory or of MMIO."""
        return self.rmp is not None and self._is_there(spa, pages * PAGE_BYTES) and self.rmp.covers(spa, pages)

    def _is_there(self, spa: int, length: int) -> bool:
        """Whether it is memory or MMIO: a table has entries for more, where its segments end."""
        base, size = self._mmio
        return 0 <= spa <= self.dram_bytes // PAGE_BYTES * PAGE_BYTES - length or base <= spa <= base + size - length

    def rmp_initialise(self) -> None:
        """Zero the RMP."""
        if self.rmp is not None:
            if self._stopped_cores is not None:
                self._stopped_cores.give_up_rmp()
            self.rmp.initialise()

    def rmp_entry(self, spa: int) -> RmpEntry:
        """The effective entry of a page."""
        return self.rmp.entry(spa // PAGE_BYTES * PAGE_BYTES) if self.rmp is not None else RmpEntry()

    def rmp_run(self, spa: int, pages: int) -> RmpEntry | None:
        """The first entry of a run, where the table holds it as one."""
        return self.rmp.run_entry(spa, pages) if self.rmp is not None else None

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        """Replace an entry."""
        if self.rmp is not None:
            self.rmp.set_entry(spa, entry)

    def rmp_set_pages(self, spa: int, length: int, entry: RmpEntry) -> None:
        """Replace the entries of 4 KiB pages."""
        if self.rmp is not None:
            self.rmp.set_entries(spa, length, entry)

    def rmp_pages_of_asid(self, asid: int) -> int:
        """Pages assigned to an ASID."""
        return self.rmp.pages_of_asid(asid) if self.rmp is not None else 0
