"""A memory controller behind write-back caches, for boards that are built to look at them.

Cores load and store through the lines of ``DataCache``. Devices and the security
processor come past them by a ``FabricView``, which snoops.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from node.cache_switches import Snoop
from node.cache_timing import USUAL, CacheTiming
from node.data_cache import LINES, DataCache
from node.dram import Dram, MachineCheck
from node.memory_cipher import BLOCK_BYTES, Ciphers
from node.memory_controller import HOST_KEY, MemoryController, NoKey
from node.product import Product
from node.rmp_layout import RmpLayout


class CachedController(MemoryController):
    """What cores see of memory: ``MemoryController`` with caches in front, and the instructions that manage them."""

    def __init__(
        self,
        dram: Dram,
        ciphers: Ciphers,
        product: Product,
        rmp: RmpLayout | None = None,
        timing: CacheTiming | None = None,
        lines: int = LINES,
    ) -> None:
        super().__init__(dram, ciphers)
        self.load_ns = USUAL.memory_ns
        """How long the last load took; always the same without ``timing``."""
        self.switches = product.caches
        self.coherent = product.coherent_across_keys
        self.cache = DataCache(super().read, self._drain, coherent=self.coherent, lines=lines)
        self._timing = timing
        self._threads_per_core = product.threads_per_core
        self._thread = 0
        if rmp is not None:
            self.place_rmp(rmp)

    def move_to(self, thread: int) -> int:
        """From now on another hardware thread loads and stores. Returns the one before."""
        before, self._thread = self._thread, thread
        return before

    @property
    def _core(self) -> int:
        # Neighbours in the numbering, as in that of APIC identifiers, are threads of one core.
        return self._thread // self._threads_per_core

    def place_rmp(self, rmp: RmpLayout) -> None:
        """Say where the RMP is: instructions change the table in memory, not through lines."""
        self.cache.unkept = tuple(range(spa, spa + length) for spa, length in rmp.ranges())

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Load through the caches. Raises MachineCheck outside of memory, NoKey where a line has to be fetched without.

        A line that is there is found whether its key is still in its slot or not.
        """
        self._expect_access(spa, length, asid)
        data = self.cache.load(spa, length, asid)
        if self._timing is not None:
            self.load_ns = self._timing.use(self._core, spa, length, asid)
        return data

    def write(self, spa: int, data: bytes | bytearray | memoryview, asid: int) -> None:
        """Store into the caches. Raises as ``read``."""
        self._expect_access(spa, len(data), asid)
        self.cache.store(spa, data, asid)
        if self._timing is not None:
            self._timing.use(self._core, spa, len(data), asid)

    def expect_store(self, spa: int, length: int, asid: int) -> None:
        """As of memory. Of a guest whose key has gone, what the store must find in a line has to be there."""
        self._expect_access(spa, length, asid)
        if length and not self.has_key(asid):
            for at in (spa, spa + length - 1):
                self.cache.load(at, 1, asid)

    def lay(self, spa: int, data: bytes, asid: int) -> None:
        """Store into the caches: nothing is put off where somebody looks at lines."""
        self.write(spa, data, asid)

    def clear(self, spa: int, length: int, asid: int) -> None:
        """Zero memory with stores that go past the caches, as the host's page clearing does."""
        self.fabric_clear(spa, length, asid, self.core_snoop)

    def written_runs(self, spa: int, length: int, asid: int) -> Iterable[tuple[int, int]]:
        """As of memory, after what a reader would find in lines is written back: nothing, if it raises as ``read``."""
        self._expect(spa, length, asid)
        if self.coherent:
            self.cache.give_up_others(spa, length, asid)
        self.cache.write_back(spa, length, asid)
        return super().written_runs(spa, length, asid)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """As the security processor does it: past the caches."""
        self.fabric(self.firmware_snoop).encrypt_in_place(spa, length, asid)

    def give_up_rmp(self) -> None:
        """Cores hold nothing of the RMP's own memory any more, and none of it is written back."""
        for part in self.cache.unkept:
            self.cache.give_up(part.start, len(part), None)

    # Instructions.

    def clflush(self, spa: int, length: int, asid: int) -> None:
        """CLFLUSH of a range, as its domain's."""
        self.cache.flush(spa, length, asid)
        self._time_flush(spa, length)

    def vm_page_flush(self, spa: int, length: int, asid: int) -> None:
        """Write back and drop lines of an ASID, whatever the part."""
        self.cache.flush_domain(spa, length, asid)
        self._time_flush(spa, length)

    def wbinvd(self) -> None:
        """Write back and drop everything."""
        self.cache.flush_all()
        self._time_flush_all()

    def invd(self) -> None:
        """Drop everything; what memory does not know is lost."""
        self.cache.invalidate_all()
        self._time_flush_all()

    def _time_flush(self, spa: int, length: int) -> None:
        if self._timing is not None:
            self._timing.flush(spa, length)

    def _time_flush_all(self) -> None:
        if self._timing is not None:
            self._timing.flush_all()

    # Past the caches.

    @property
    def core_snoop(self) -> Snoop:
        """Which lines a core finds."""
        return Snoop.ALL if self.coherent else Snoop.OWN

    @property
    def firmware_snoop(self) -> Snoop:
        """Which lines the security processor finds."""
        return Snoop.ALL if self.coherent else self.switches.firmware

    def fabric(self, snoop: Snoop) -> FabricView:
        """Memory as an agent reaches it that is no core."""
        return FabricView(self, snoop)

    def fabric_read(self, spa: int, length: int, asid: int, snoop: Snoop) -> bytes:
        """Read memory; dirty lines that are found answer, those of another domain by being written back."""
        self._expect(spa, length, asid)
        if snoop is Snoop.ALL:
            self.cache.give_up_others(spa, length, asid)
        data = super().read(spa, length, asid)
        return data if snoop is Snoop.NONE else self.cache.snooped(spa, data, asid)

    def fabric_write(self, spa: int, data: bytes, asid: int, snoop: Snoop) -> None:
        """Write memory; lines that are found go."""
        self._expect(spa, len(data), asid)
        before, after = spa % BLOCK_BYTES, -(spa + len(data)) % BLOCK_BYTES
        if before or after:
            head = self.fabric_read(spa - before, before, asid, snoop)
            tail = self.fabric_read(spa + len(data), after, asid, snoop)
            spa, data = spa - before, head + data + tail
        self._make_way(spa, len(data), asid, snoop)
        super().write(spa, data, asid)

    def fabric_clear(self, spa: int, length: int, asid: int, snoop: Snoop) -> None:
        """Zero memory; lines that are found go."""
        self._expect(spa, length, asid)
        self._make_way(spa, length, asid, snoop)
        super().clear(spa, length, asid)

    def _expect_access(self, spa: int, length: int, asid: int) -> None:
        """As ``_expect`` for a core's access, which may find lines of a guest whose key has gone."""
        self.expect(spa, length)
        if asid == HOST_KEY:
            self._fill(asid, spa)

    def _expect(self, spa: int, length: int, asid: int) -> None:
        """What the access would raise, before any line is written back or dropped for it."""
        self.expect(spa, length)
        self._fill(asid, spa)

    def _make_way(self, spa: int, length: int, asid: int, snoop: Snoop) -> None:
        self._time_flush(spa, length)
        if snoop is Snoop.ALL:
            self.cache.give_up_others(spa, length, asid)
        if snoop is not Snoop.NONE:
            self.cache.give_up(spa, length, asid)

    def _drain(self, spa: int, line: bytes, asid: int) -> None:
        # Nobody could ever read a line whose key went with DEACTIVATE or SNP_DECOMMISSION. What was stored to memory
        # before hardware took it for itself does not get there any more.
        with suppress(NoKey, MachineCheck):
            super().write(spa, line, asid)


class FabricView:
    """Memory as devices and the security processor reach it, with the methods of ``MemoryController``."""

    def __init__(self, controller: CachedController, snoop: Snoop) -> None:
        self._controller = controller
        self._snoop = snoop
        self.install_key = controller.install_key
        self.remove_key = controller.remove_key
        self.has_key = controller.has_key

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Read memory or the lines found. Raises MachineCheck, NoKey."""
        return self._controller.fabric_read(spa, length, asid, self._snoop)

    def write(self, spa: int, data: bytes | bytearray | memoryview, asid: int) -> None:
        """Write memory; lines found go. Raises MachineCheck, NoKey."""
        self._controller.fabric_write(spa, bytes(data), asid, self._snoop)

    def lay(self, spa: int, data: bytes, asid: int) -> None:
        """Write memory; lines found go. Raises MachineCheck, NoKey."""
        self.write(spa, data, asid)

    def clear(self, spa: int, length: int, asid: int) -> None:
        """Zero memory; lines found go. Raises MachineCheck, NoKey."""
        self._controller.fabric_clear(spa, length, asid, self._snoop)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """Read without a key and write through an ASID's: lines without one stay, unless all are found."""
        self.write(spa, self.read(spa, length, 0), asid)
