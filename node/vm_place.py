"""What a hypervisor holds of a VM without a key that came from another host, until somebody asks for its record."""

from __future__ import annotations

from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.hypervisor_port import Entered
from node.launched_vm import LaunchedVm
from psp.system_bus import PAGE_BYTES


class VmPlace:
    """Its frames: memory in one piece, a page of the hypervisor's own, nested tables in one piece, and save areas."""

    __slots__ = ("_firmware", "_maps", "_small", "areas", "launched_gpas", "ram", "tables")

    def __init__(
        self, firmware: FirmwareImage, ram: tuple[int, int], maps: tuple[tuple[int, int, int], ...], small: int,
        tables: tuple[int, int],
    ) -> None:  # fmt: skip
        self._firmware = firmware
        self._maps = maps
        self._small = small
        self.ram = ram
        self.tables = tables
        self.areas: tuple[int, ...] = ()
        """Save areas, once it is there."""
        self.launched_gpas: tuple[int, ...] = ()

    @property
    def small(self) -> tuple[int, ...]:
        """Pages that are no memory of its own."""
        return self._small, *self.areas

    @property
    def frames(self) -> list[tuple[int, int]]:
        """All of it, as (SPA, length)."""
        frames = [self.ram, (self._small, PAGE_BYTES), self.tables]
        for spa in self.areas:
            frames.append((spa, PAGE_BYTES))  # noqa: PERF401 - one or two of them
        return frames

    def add_area(self, spa: int) -> None:
        """A page of its own is the next vCPU's save area."""
        self.areas += (spa,)

    def entered(self) -> Entered:
        """As a record's."""
        return tuple.__new__(Entered, (0, self.areas, self.launched_gpas, 0, 0, ()))

    def record(self) -> LaunchedVm:
        """The record of such a VM."""
        record = LaunchedVm(Generation.PLAIN, self._firmware)
        record.ram, record.small, record.tables = list(self._maps), list(self.small), [self.tables]
        record.save_areas, record.launched_gpas = list(self.areas), self.launched_gpas
        return record
