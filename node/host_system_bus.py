"""The machine as its security processor reaches it: the board's side of ``SystemBus``."""

from __future__ import annotations

from node.cached_controller import CachedController
from node.ciphertext_hiding import CiphertextHiding, MemoryReader
from node.memory_controller import MemoryController
from node.platform import Platform
from node.product import Product
from node.rmp import ReverseMapTable
from psp.system_bus import PAGE_BYTES, CoreConfiguration, RmpEntry


class HostSystemBus:
    """Wires the security processor to a board's DRAM, key slots, RMP and cores."""

    def __init__(
        self,
        product: Product,
        min_sev_asid: int,
        dram_bytes: int,
        controller: MemoryController,
        rmp: ReverseMapTable | None,
        platform: Platform,
    ) -> None:
        self.max_asid = product.max_asid
        self.min_sev_asid = min_sev_asid
        self.dram_bytes = dram_bytes
        self.wbinvds = 0
        """WBINVDs that all cores have completed."""
        self.cores = CoreConfiguration(
            snp_enabled=rmp is not None,
            mtrr_fix_dram_mod_enabled=rmp is not None,
            hsave_pa_zero=True,
            smt_enabled=product.threads_per_core > 1,
        )
        caches = controller if isinstance(controller, CachedController) else None
        self._controller = controller if caches is None else caches.fabric(caches.firmware_snoop)
        self._stopped_cores = caches if platform.rmp_init_barrier else None
        self._rmp = rmp
        self.can_hide_ciphertext = product.can_hide_ciphertext and rmp is not None
        self._cores_memory = controller
        self.host_view: MemoryReader = controller
        """Memory as cores read it without a guest's key."""

    def hide_ciphertext(self, max_snp_asid: int) -> None:
        """Answer cores with ones in place of ciphertext of SNP guests up to an ASID; with 0 as before."""
        self.host_view = self._cores_memory
        if max_snp_asid and self._rmp is not None:
            self.host_view = CiphertextHiding(self._cores_memory, self._rmp, max_snp_asid)

    def core_configuration(self) -> CoreConfiguration:
        """The settings of all cores; the start-up code of this version sets them rightly."""
        return self.cores

    def read(self, spa: int, length: int) -> bytes:
        """Read DRAM without a key."""
        return self._controller.read(spa, length, 0)

    def write(self, spa: int, data: bytes) -> None:
        """Write DRAM without a key."""
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

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a key slot."""
        self._controller.install_key(asid, key)

    def remove_key(self, asid: int) -> None:
        """Empty a key slot."""
        self._controller.remove_key(asid)

    def wbinvd_count(self) -> int:
        """Completed WBINVDs on all cores."""
        return self.wbinvds

    def rmp_covers(self, spa: int) -> bool:
        """Whether there is an RMP and the page is in it."""
        return self._rmp is not None and 0 <= spa < self.dram_bytes and self._rmp.covers(spa)

    def rmp_initialise(self) -> None:
        """Zero the RMP."""
        if self._rmp is not None:
            if self._stopped_cores is not None:
                self._stopped_cores.give_up_rmp()
            self._rmp.initialise()

    def rmp_entry(self, spa: int) -> RmpEntry:
        """The effective entry of a page."""
        return self._rmp.entry(spa // PAGE_BYTES * PAGE_BYTES) if self._rmp is not None else RmpEntry()

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        """Replace an entry."""
        if self._rmp is not None:
            self._rmp.set_entry(spa, entry)

    def rmp_pages_of_asid(self, asid: int) -> int:
        """Pages assigned to an ASID."""
        return self._rmp.pages_of_asid(asid) if self._rmp is not None else 0
