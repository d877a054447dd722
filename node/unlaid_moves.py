"""Moves of VMs that nobody looks at: what the hypervisor's tasks come to, without their operations.

What ``node.vm_transfer`` has a hypervisor do with a VM without a key is the same each time: frames are taken, bytes are
stored in them, read, and cleared. Where ``node.unlaid_vms`` only writes that down, a step here does so for the whole of
a task. It leaves what the task would: the same frames are taken and given back, it takes as long, in as many events,
and whoever looks finds the operations. Where it cannot, nothing is changed and the task is for its caller to run; if
somebody looks while a step's time passes, the task itself goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from node import operations as op
from node.board import Board
from node.frame_allocator import OutOfMemory, Wanted
from node.guest import Guest
from node.guest_memory_map import Range, memory_map
from node.hypervisor import SPARE_TABLES, Hypervisor
from node.hypervisor_port import Entered, FillTask, HypervisorPort, LaunchRefused
from node.hypervisor_tasks import HypervisorTask, HypervisorTasks, KnownTask
from node.nested_table_pages import layout_of, table_pages
from node.operation_cost import HostOperationCost
from node.vm_place import PlaceShape, VmPlace
from node.vm_state import VmState
from node.vm_transfer import PAUSE, RESUME, STOP, fill_at
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

_Stopped = KnownTask[tuple[VmPlace, tuple[bool, ...]]]
"""Of a VM that is read: which vCPUs have come out of reset."""
_Coming = KnownTask[tuple[VmPlace, VmState]]
_Gone = KnownTask[VmPlace]
Refused = Callable[[LaunchRefused], None]
_new = tuple.__new__
"""Makes a named tuple at half the price of its own constructor."""
_NO_MORE = VmState("", (), (), (), (), (), ())[6:]
"""What no PLAIN VM without a disk has."""


@lru_cache(maxsize=256)
def _shape(memory_bytes: int, vcpus: int, flash_gpa: int, flash_bytes: int) -> PlaceShape | None:
    """None for what only a ``NestedBuild`` judges, and for what no single row holds."""
    at, pieces = 0, []
    for part in (*memory_map(memory_bytes, vcpus).ram, Range(flash_gpa, flash_bytes)):
        pieces.append((part.gpa, at, part.length))
        at += part.length
    if any(offset % LARGE_PAGE_BYTES for _, offset, _ in pieces):
        return None
    layout, pages = layout_of(pieces), table_pages(pieces) + SPARE_TABLES
    if layout is None or pages <= len(layout.tables):
        return None
    return PlaceShape(tuple(pieces), Wanted(at, 1 + vcpus, pages * PAGE_BYTES))


class UnlaidMoves:
    """Those of one host, whose hypervisor is here."""

    def __init__(
        self, board: Board, hypervisor: HypervisorPort, tasks: HypervisorTasks, cost: HostOperationCost
    ) -> None:
        self._unlaid = board.unlaid
        # Another kind of hypervisor may do other things than are known here.
        self._hypervisor = hypervisor if type(hypervisor) is Hypervisor else None
        if self._hypervisor is not None:
            board.unlaid.free_memory.frames = self._hypervisor.frames
        self._tasks = tasks
        self._cost = cost
        self._stop_ns: dict[int, int] = {}
        """By the number of vCPUs."""
        self._resume_ns = round(cost.price_of_work((RESUME,)))
        self._clear_ns: dict[int, int] = {}
        """By the length of what is cleared."""

    def _place(self, vm: str) -> VmPlace | None:
        """What the hypervisor holds of a VM, if it has nothing to do for it and nobody has looked at that."""
        hypervisor = self._hypervisor
        if hypervisor is None or vm not in self._unlaid.vms or vm in self._tasks.lines:
            return None
        return hypervisor.places.get(vm)

    def receive(self, guest: Guest) -> bool:
        """As ``receive``: what the VM will need is taken."""
        hypervisor, spec, unlaid = self._hypervisor, guest.spec.machine, self._unlaid
        vm = spec.name
        if hypervisor is None or vm not in unlaid.vms or vm in self._tasks.lines:
            return False
        if vm in hypervisor.places or hypervisor.has_record(vm):
            return False
        if spec.cpu_model or spec.launched_on:
            return False  # Of the latter the hypervisor asks whether its processors show all that they are shown.
        image = hypervisor.image(spec.firmware)
        shape = _shape(spec.memory_bytes, spec.vcpus, image.gpa, len(image.data))
        if shape is None:
            return False
        place = VmPlace(image, shape, hypervisor.frames)
        if not unlaid.build_later(vm, place):
            if not place.take():
                return False
            if not unlaid.build(vm, place):
                place.give_back()
                return False
        hypervisor.places[vm] = place
        return True

    def export(
        self, guest: Guest, started: tuple[bool, ...], read: Callable[[object], None], refused: Refused
    ) -> bool:  # fmt: skip
        """As ``export``: the VM is read."""
        place = self._place(guest.spec.name)
        if place is None:
            return False
        count = place.count
        spent_ns = self._stop_ns.get(count)
        if spent_ns is None:
            spent_ns = self._stop_ns[count] = round(self._cost.price_of_work((STOP, *[PAUSE] * count)))
        known = KnownTask(guest, self._read, self._export, (place, started), read, refused)
        self._tasks.spend(spent_ns, known)
        return True

    def _read(self, known: _Stopped) -> VmState | None:
        guest, (place, started) = known.guest, known.about
        vm = guest.spec.name
        found = self._unlaid.read(vm, place.count)
        if found is None:
            return None
        areas, pages = found
        return _new(VmState, (vm, areas, started, place.launched_gpas, guest.boot_rips, pages, *_NO_MORE))

    def _export(self, known: _Stopped) -> HypervisorTask:
        assert self._hypervisor is not None
        _, started = known.about
        return self._hypervisor.export(known.guest.spec.name, started, known.guest.boot_rips)

    def fill(self, guest: Guest, state: VmState, laid: Callable[[object], None], refused: Refused) -> bool:
        """As ``fill``: the VM is laid down, and its pages are read back."""
        vm = guest.spec.name
        place = self._place(vm)
        if place is None or place.count or state.blocks or not state.save_areas:
            return False
        place.launched_gpas = state.launched
        try:
            self._unlaid.take_areas(vm, place, len(state.save_areas))
        except OutOfMemory as error:
            refused(LaunchRefused(str(error)))
            return True

        known = KnownTask(guest, self._back, self._fill, (place, state), laid, refused)
        self._tasks.spend(self._resume_ns, known)
        return True

    def _back(self, known: _Coming) -> tuple[Entered, bytes] | None:
        place, state = known.about
        found = self._unlaid.fill(known.guest.spec.name, place, state.pages, state.save_areas)
        if found is None:
            return None
        areas, octets = found
        return _new(Entered, (0, areas, state.launched, 0, 0, ())), octets

    def _fill(self, known: _Coming) -> FillTask:
        assert self._hypervisor is not None
        place, state = known.about
        areas = list(zip(place.areas, state.save_areas, strict=True))
        return fill_at(self._hypervisor, known.guest.spec.machine, state, areas)

    def depart(self, guest: Guest) -> bool:
        """As ``depart``: everything that the VM had is given back."""
        place = self._place(guest.spec.name)
        if place is None:
            return False
        length = place.shape.wanted.run
        spent_ns = self._clear_ns.get(length)
        if spent_ns is None:
            spent_ns = self._clear_ns[length] = round(self._cost.price((op.HostClear(0, length),)))
        self._tasks.spend(spent_ns, KnownTask(guest, self._cleared, self._depart, place, _ignore, None))
        return True

    def _cleared(self, known: _Gone) -> bool | None:
        vm, place, hypervisor = known.guest.spec.name, known.about, self._hypervisor
        assert hypervisor is not None
        if hypervisor.places.get(vm) is not place or not self._unlaid.leave(vm, place):
            return None
        del hypervisor.places[vm]
        return True

    def _depart(self, known: _Gone) -> HypervisorTask:
        assert self._hypervisor is not None
        return self._hypervisor.depart(known.guest.spec.name)


def _ignore(_: object) -> None:
    pass
