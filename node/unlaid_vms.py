"""VMs that came to a host and that nobody has looked at: what the board is to do for them is only written down.

A VM without a key that comes from another host is bytes that its hypervisor stores in frames of its own. Each of
those operations is checked when it is issued, and answered as if it had been carried out. Whoever then reads or
writes one of the frames, by whatever route, asks for a control block or a nested table, changes who owns
the pages, or lets the VM run a block, has all of them carried out first, in their order. A VM that goes on to another
host before that is read from what was written down, and leaves memory as it found it: empty.

Not put off is what anybody else could tell from the outside: the books say how much memory is taken, times are charged,
and the save area of a vCPU that runs is in use.

Which frames are taken may be put off in its turn (``build_later``): all free memory is watched then, and the first that
anybody does there finds each VM in the frames that it would have had at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from node import operations as op
from node.frame_allocator import joined
from node.free_memory_watch import FreeMemoryWatch, may_be_written
from node.generation import Generation
from node.guest_backing import Backing, backing_of
from node.kept_ranges import Touch
from node.nested_table_pages import layout_of
from node.platform import HostMode
from node.running_vcpus import NOWHERE
from node.vm_state import Run, VmState
from node.vmsa import StoredArea, registers_in
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board
    from node.vm_place import VmPlace

_PLAIN = Generation.PLAIN
_BLANK = bytes(PAGE_BYTES)
"""What is in a save area that was cleared since its control block was written."""
Batch = tuple[op.HypervisorOperation, ...]
Later = Callable[[], Batch]
"""Operations that are made when they are to be carried out."""
Maps = tuple[tuple[int, int, int], ...]
"""(GPA, SPA, length) of a VM's memory."""
Pages = tuple[Run, ...]


class _NowError(Exception):
    """An operation that cannot be put off."""


class _Unlaid:
    __slots__ = ("areas", "contents", "done", "kept", "maps", "pages", "ram", "settled", "stored", "touched", "waits")

    def __init__(self) -> None:
        self.done: list[op.HypervisorOperation | Later] = []
        """What has an effect, in the order in which it was issued."""
        self.contents: dict[int, bytes] = {}
        """What was stored, by SPA: whole pages, none twice."""
        self.kept: dict[int, int] = {}
        """Ranges of memory, by their begin, and their ends; nobody has touched any since."""
        self.maps: Maps = ()
        self.pages: Pages | None = None
        """What it came with, by GPA, as long as its memory holds that and nothing else."""
        self.ram: tuple[tuple[int, int], ...] = ()
        """The VM's memory, (SPA, length), as few pieces as there can be."""
        self.areas: dict[int, int] = {}
        """Save areas of the control blocks that were written."""
        self.stored: dict[int, bytes | StoredArea] = {}
        """Those in which exits have left registers since ``contents`` has them; all of them while it waits."""
        self.settled = False
        self.touched: Touch | None = None
        """Who is told of an access to what is kept."""
        self.waits: VmPlace | None = None
        """Where it will turn out to lie, as long as nobody knows."""

    def backing(self, node_bytes: int) -> Backing:
        """As its nested table's."""
        return _backing(self.maps, node_bytes)


class UnlaidVms:
    """Those of one board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.vms: dict[str, _Unlaid] = {}
        platform = board.platform
        self._usual = board.caches is None and board.tlb is None and platform.mode is HostMode.NONE
        """Whether a store of the host without C-bit is nothing but bytes in DRAM."""
        self.free_memory = FreeMemoryWatch(board, self._place)
        """On while VMs wait for their addresses."""
        self.placed: Callable[[str, tuple[int, ...]], None] = lambda _vm, _areas: None
        """Told where the save areas of a VM turned out to lie that was entered before."""
        self.asked: Callable[[str], None] = lambda _vm: None
        """Told which VM somebody is about to look at."""
        self._waiting: dict[str, _Unlaid] = {}

    def expect(self, vm: str) -> None:
        """A VM without a key is about to come: put off what can be. One that is here, as while it is cleared, stays."""
        board = self._board
        if (
            vm not in self.vms and self._usual and board.observer is None and not board.dram.has_routes
            and board.bus.fast_registers.page is None and (board.rmp is None or board.snp_enabled)
            and not dict.__contains__(board.nested, vm) and vm not in board.disk_files
        ):  # fmt: skip
            self.vms[vm] = _Unlaid()

    def execute(self, vm: str, batch: Batch) -> tuple[op.Answer, ...]:
        """Answer a batch that the hypervisor issues for such a VM; with the first that cannot wait, none is put off."""
        board, one = self._board, self.vms[vm]
        if one.waits is not None:
            self.free_memory.end()
        answers: list[op.Answer] = []
        self._write_registers(one)
        if board.observer is None:
            try:
                for each in batch:
                    # One at a time: with the first that cannot wait those before it are carried out.
                    answers.append(_TAKEN.get(type(each), _not_known)(self, vm, one, each))  # noqa: PERF401
            except _NowError:
                pass
            else:
                return tuple(answers)
        self.look(vm)
        return (*answers, *board.execute_host(batch[len(answers) :]))

    def look(self, vm: str) -> bool:
        """Somebody looks at a VM: carry out what was put off; whether there was anything of it."""
        if vm not in self.vms:
            return False
        self.asked(vm)
        if vm in self._waiting:
            self.free_memory.end()
        one = self.vms.pop(vm)
        board = self._board
        running = board.running
        self._let_go(one)
        self._write_registers(one)
        seats = [
            (vcpu, area, running.thread_of((vm, vcpu)), running.is_scheduled((vm, vcpu)))
            for vcpu, area in one.areas.items()
        ]
        done: list[op.HypervisorOperation] = []
        for each in one.done:
            done += each() if callable(each) else (each,)
        answers = board.carry_out(tuple(done))
        assert not any(answers), f"{vm}: {answers} from what had been accepted"
        # Whoever writes a control block finds its vCPU off the core; these were entered since.
        for vcpu, area, thread, scheduled in seats:
            if thread is not None:
                running.take((vm, vcpu), thread, area)
            elif scheduled:
                running.schedule((vm, vcpu), area)
        if one.settled:
            board.residents.settle(board.vmcb(vm, 0))
        return True

    def look_at_all(self) -> None:
        """Somebody looks at everything."""
        for vm in list(self.vms):
            self.look(vm)

    # What else is done with one of them.

    def settle(self, vm: str) -> bool:
        """A VM is about to run for the first time; False for one that is none of these."""
        one = self.vms.get(vm)
        if one is None:
            return False
        one.settled = True
        return True

    def enter(self, vm: str, vcpu: int) -> int:
        """The scheduler's VMRUN: the block was accepted before, and nothing of it has changed."""
        self._board.running.schedule((vm, vcpu), self.vms[vm].areas[vcpu])
        return 0

    def run(self, vm: str) -> None:
        """All of a VM's vCPUs begin to run here."""
        one = self.vms[vm]
        one.settled = True
        for vcpu, area in one.areas.items():
            self._board.running.schedule((vm, vcpu), area)

    def store_rest(self, vm: str, vcpu: int, left: int) -> None:
        """An exit of a vCPU leaves its registers as they were loaded, but for what is left of a sleep or a phase."""
        before = self.save_area(vm, vcpu)
        page = before.page if type(before) is StoredArea else bytes(before)
        self.vms[vm].stored[vcpu] = StoredArea(page, (*registers_in(before)[:-1], left))

    def areas(self, vm: str) -> tuple[int, ...]:
        """Where the save areas of a VM's vCPUs are, by their numbers, as far as anybody has asked."""
        return tuple([area for _, area in sorted(self.vms[vm].areas.items())])

    def save_areas(self, state: VmState, areas: Sequence[int]) -> Sequence[bytes | StoredArea] | None:
        """Registers by vCPU of a VM that came and has not run; None if it is laid down, as one with other areas is."""
        one = self.vms.get(state.vm)
        if one is None:
            return None
        if one.pages is state.pages:
            return state.save_areas  # All that came was stored, and nothing else.
        if one.areas != dict(enumerate(areas)) or len(areas) != len(state.save_areas):
            self.look(state.vm)
            return None
        stored, contents = one.stored, one.contents
        return [stored[vcpu] if vcpu in stored else contents.get(spa, _BLANK) for vcpu, spa in enumerate(areas)]

    def save_area(self, vm: str, vcpu: int) -> bytes | StoredArea:
        """The registers of a vCPU that is off its core."""
        one = self.vms[vm]
        return one.stored[vcpu] if vcpu in one.stored else one.contents.get(one.areas[vcpu], _BLANK)

    def store_registers(self, vm: str, vcpu: int, registers: tuple[int, ...]) -> None:
        """What its exit leaves there."""
        one = self.vms[vm]
        before = self.save_area(vm, vcpu)
        page = before.page if isinstance(before, StoredArea) else before
        one.stored[vcpu] = StoredArea(page, registers)

    @staticmethod
    def _write_registers(one: _Unlaid) -> None:
        """Write down what exits have left, as stores like others."""
        for vcpu, area in one.stored.items():
            spa, page = one.areas[vcpu], bytes(area)
            one.contents[spa] = page
            one.done.append(op.HostWrite(spa, page))
        one.stored = {}

    # Whole batches of ``node.unlaid_moves``, which makes no operations of them. False or None where they cannot be put
    # off, as where somebody watches, with nothing changed.

    def build_later(self, vm: str, place: VmPlace) -> bool:
        """A ``NestedBuild`` over memory that is to be taken, wherever that will be, with tables that are enough."""
        one, watch = self.vms.get(vm), self.free_memory
        if one is None or one.done or self._board.observer is not None:
            return False
        if not watch.goes_on() and not (place.has_room() and watch.begin()):
            return False
        if not place.take_later():
            return False
        one.waits, self._waiting[vm] = place, one
        # Where all memory is equally near it does not matter where it is.
        one.maps = place.shape.pieces if self._board.platform.numa_nodes == 1 else place.maps
        return True

    def build(self, vm: str, place: VmPlace) -> bool:
        """The same over memory that was taken, in one piece."""
        one = self.vms.get(vm)
        if one is None or one.done or self._board.observer is not None:
            return False
        return self._build(vm, one, place)

    def _build(self, vm: str, one: _Unlaid, place: VmPlace) -> bool:
        tables, ram, maps = place.tables, place.ram, place.maps
        try:
            for spa, length in (tables, ram):
                self._keep(vm, one, spa, length)
        except _NowError:
            self._let_go(one)
            one.kept.clear()
            return False
        one.ram, one.maps = (ram,), maps
        one.done.append(lambda: (op.NestedBuild(vm, (tables,), maps, False),))
        return True

    def take_areas(self, vm: str, place: VmPlace, count: int) -> None:
        """Take pages for save areas. Raises OutOfMemory with none taken."""
        if self.free_memory.goes_on() and vm in self._waiting:
            if place.take_areas_later(count):
                return
            self.free_memory.end()
        place.take_areas(count)

    def fill(
        self, vm: str, place: VmPlace, pages: Pages, saved: Sequence[bytes | StoredArea]
    ) -> tuple[tuple[int, ...], bytes] | None:
        """The stores of pages, by GPA, and of save areas; control blocks; the loads of pages; and the first VMRUN.

        Where the save areas are, and what the loads bring; None where it cannot be put off.
        """
        one, board = self.vms.get(vm), self._board
        if one is None or board.observer is not None or board.running.threads or one.areas:
            return None
        for page in saved:
            if type(page) is bytes and len(page) != PAGE_BYTES:
                return None
        if one.waits is None:
            octets = self._fill(vm, one, pages, tuple(zip(place.areas, saved, strict=True)))
            if octets is None:
                return None
            board.running.take((vm, 0), 0, one.areas[0])
            return place.areas, octets
        areas = (NOWHERE,) * len(saved)
        one.pages, one.stored, one.areas = pages, dict(enumerate(saved)), dict(enumerate(areas))
        board.running.take((vm, 0), 0, NOWHERE)
        return areas, b"".join([data for _, data in pages])

    def _fill(
        self, vm: str, one: _Unlaid, pages: Pages, areas: Sequence[tuple[int, bytes | StoredArea]]
    ) -> bytes | None:
        board = self._board
        if one.contents or len(one.ram) != 1:
            return None
        laid: dict[int, bytes] = {}
        for gpa, data in pages:
            end = gpa + len(data)
            for start, spa, length in one.maps:
                if start <= gpa and end <= start + length:
                    laid[spa + gpa - start] = data
                    break
            else:
                return None
        consistent, before = board.vmrun_checks.consistent, len(one.kept)
        try:
            for spa, _ in areas:
                if not consistent(_PLAIN, 0, spa):
                    _not_known()
                self._keep(vm, one, spa, PAGE_BYTES)
        except _NowError:
            for spa in list(one.kept)[before:]:
                board.dram.let_go(spa)
                del one.kept[spa]
            return None
        one.pages = pages
        whole = []
        for vcpu, (spa, page) in enumerate(areas):
            one.areas[vcpu] = spa
            if type(page) is StoredArea:
                one.stored[vcpu] = page
                whole.append((spa, page.page))
            else:
                whole.append((spa, bytes(page)))
        one.contents = laid | dict(whole)
        one.done.append(lambda: _stores(vm, laid, whole))
        return b"".join(laid.values())

    def read(self, vm: str, vcpus: int) -> tuple[tuple[bytes | StoredArea, ...], Pages] | None:
        """Save areas of a VM's first vCPUs, and what its memory holds, by GPA, as long as that is what it came with.

        None where nobody knows at once.
        """
        one = self.vms.get(vm)
        if one is None or one.pages is None or self._board.observer is not None:
            return None
        areas, stored, contents = one.areas, one.stored, one.contents
        found = tuple([stored[vcpu] if vcpu in stored else contents[areas[vcpu]] for vcpu in range(vcpus)])
        return found, one.pages

    def leave(self, vm: str, place: VmPlace) -> bool:
        """All of a VM's memory is cleared, its control blocks go, and all that it had is given back."""
        one = self.vms.get(vm)
        if one is None or self._board.observer is not None:
            return False
        if one.waits is not None:
            del self._waiting[vm]
            self._forget(vm)
            place.give_back_later()
            return True
        if len(one.ram) != 1:
            return False
        kept = one.kept
        try:
            for spa in place.small:
                if spa not in kept:
                    self._expect_free(spa, PAGE_BYTES)
        except _NowError:
            return False
        self._let_go(one)
        self._forget(vm)
        place.give_back()
        return True

    def _place(self) -> None:
        """Free memory is free memory no longer: find out where VMs are that wait for that.

        Raises what went wrong first, with a note that names the VM, once all others have their places.
        """
        waiting, self._waiting = self._waiting, {}
        wrong: list[Exception] = []
        try:
            if self.free_memory.frames is not None:
                self.free_memory.frames.settle()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised once everybody has a place
            wrong.append(error)
        for vm, one in waiting.items():
            try:
                self._place_one(vm, one)
            except Exception as error:  # noqa: BLE001 - the same
                error.add_note(f"where {vm} lies")
                wrong.append(error)
                self._let_go(one)
                self._forget(vm)
        if wrong:
            raise wrong[0]

    def _place_one(self, vm: str, one: _Unlaid) -> None:
        place, pages, saved = one.waits, one.pages, one.stored
        assert place is not None
        one.waits, one.areas, one.stored = None, {}, {}
        built = self._build(vm, one, place)
        assert built, f"{vm}: not where free memory was"
        if pages is None:
            return
        filled = self._fill(vm, one, pages, tuple(zip(place.areas, saved.values(), strict=True)))
        assert filled is not None, f"{vm}: not where free memory was"
        for vcpu, area in one.areas.items():
            self._board.running.found((vm, vcpu), area)
        self.placed(vm, place.areas)

    # Operations: what they would have been answered, or else they are carried out.

    def _expect_free(self, spa: int, length: int) -> None:
        """Only there, and where nobody has written anything yet."""
        if not may_be_written(self._board, spa, length) or not self._board.dram.cells.is_blank(spa, length):
            raise _NowError

    def _keep(self, vm: str, one: _Unlaid, spa: int, length: int) -> None:
        """Leave such a range to a VM until somebody looks."""
        if self.free_memory.starts:
            self.free_memory.end()
        if not may_be_written(self._board, spa, length):
            raise _NowError
        touched = one.touched
        if touched is None:
            touched = one.touched = lambda _spa, _length: self._touched(vm, one)
        if not self._board.dram.cells.keep_blank(spa, length, touched):
            raise _NowError
        one.kept[spa] = spa + length

    def _let_go(self, one: _Unlaid) -> None:
        one.touched = None
        self._board.dram.cells.let_go_all(one.kept)

    def _touched(self, vm: str, one: _Unlaid) -> None:
        if self.vms.get(vm) is one:
            self.look(vm)

    def _nested_build(self, vm: str, one: _Unlaid, build: op.NestedBuild) -> op.Answer:
        layout = layout_of(build.maps)
        given = sum([length for _, length in build.frames]) // PAGE_BYTES
        if build.vm != vm or build.encrypted or one.done or layout is None or given <= len(layout.tables):
            raise _NowError
        one.ram = tuple(joined([(spa, length) for _, spa, length in build.maps]))
        for spa, length in (*joined(build.frames), *one.ram):
            self._keep(vm, one, spa, length)
        one.maps = build.maps
        one.done.append(build)
        return None

    def _host_write(self, vm: str, one: _Unlaid, write: op.HostWrite) -> op.Answer:
        spa, data = write.spa, write.data
        end = spa + len(data)
        if write.encrypted or type(data) is not bytes:
            raise _NowError
        for start, length in self._outside(one, spa, end):
            self._keep(vm, one, start, length)
        if len(data) % PAGE_BYTES or spa % PAGE_BYTES or self._meets(one, spa, end):
            raise _NowError
        one.contents[spa] = data
        one.pages = None
        one.done.append(write)
        return None

    def _host_clear(self, vm: str, one: _Unlaid, clear: op.HostClear) -> op.Answer:
        spa, end = clear.spa, clear.spa + clear.length
        if clear.encrypted:
            raise _NowError
        self.asked(vm)  # What runs has its registers on its core, and is not to find them gone.
        for start, length in self._outside(one, spa, end):
            self._expect_free(start, length)  # And so it stays.
        one.pages = None
        for at, data in list(one.contents.items()):
            if spa <= at and at + len(data) <= end:
                del one.contents[at]
            elif spa < at + len(data) and at < end:
                raise _NowError
        one.done.append(clear)
        return None

    def _vmcb_write(self, vm: str, one: _Unlaid, write: op.VmcbWrite) -> op.Answer:
        spa, plain = write.save_area_spa, Generation.PLAIN
        if (
            write.vm != vm or write.generation != plain.name or not one.maps or write.vcpu in one.areas
            or spa in one.areas.values() or write.nested_cr3 != -1 or write.tlb_control
            or len(one.contents.get(spa, b"")) != PAGE_BYTES
            or not self._board.vmrun_checks.consistent(plain, write.asid, spa)
        ):  # fmt: skip
            raise _NowError
        one.areas[write.vcpu] = spa
        one.done.append(write)
        return None

    def _vmrun(self, vm: str, one: _Unlaid, run: op.VmRun) -> op.Answer:
        """The block is in order, as ``VmrunChecks`` has it: since it was filled nobody changed it or its save area."""
        board = self._board
        area = one.areas.get(run.vcpu) if run.vm == vm else None
        if area is None or not 0 <= run.core < board.product.threads or board.running.threads:
            raise _NowError
        board.running.take((vm, run.vcpu), run.core, area)
        return 0

    def _host_read(self, _: str, one: _Unlaid, read: op.HostRead) -> op.Answer:
        data = one.contents.get(read.spa)
        if data is None or len(data) != read.length or read.encrypted:
            raise _NowError
        return data

    def _host_read_written(self, _: str, one: _Unlaid, read: op.HostReadWritten) -> op.Answer:
        if read.encrypted or (read.spa, read.length) not in one.ram:
            raise _NowError
        runs: list[tuple[int, bytes]] = []
        for spa, data in sorted(one.contents.items()):
            if read.spa <= spa < read.spa + read.length:
                if runs and runs[-1][0] + len(runs[-1][1]) == spa:
                    runs[-1] = runs[-1][0], runs[-1][1] + data
                else:
                    runs.append((spa, data))
        return op.Runs(tuple(runs))

    def _disk_read(self, vm: str, _: _Unlaid, read: op.DiskRead) -> op.Answer:
        if read.vm != vm or vm in self._board.disks:
            raise _NowError
        return op.Runs(())

    def _vmcb_clear(self, vm: str, one: _Unlaid, clear: op.VmcbClear) -> op.Answer:
        if clear.vm != vm or one.contents:
            raise _NowError
        self._let_go(one)
        self._forget(vm)
        return None

    def _forget(self, vm: str) -> None:
        board = self._board
        del self.vms[vm]
        # Whatever else the board has by a VM's name, it has since somebody looked.
        board.traced.discard(vm)
        board.running.forget(vm)

    @staticmethod
    def _outside(one: _Unlaid, spa: int, end: int) -> list[tuple[int, int]]:
        """What of a range is not kept for a VM, as (SPA, length)."""
        for start, stop in one.kept.items():
            if start <= spa and end <= stop:
                return []  # As nearly always.
        found = []
        for start, stop in sorted(one.kept.items()):
            if start < end and spa < stop:
                if spa < start:
                    found.append((spa, start - spa))
                spa = stop
        if spa < end:
            found.append((spa, end - spa))
        return found

    @staticmethod
    def _meets(one: _Unlaid, spa: int, end: int) -> bool:
        for at, data in one.contents.items():  # noqa: SIM110 - a generator would cost more than all of it
            if at < end and spa < at + len(data):
                return True
        return False


@lru_cache(maxsize=4096)
def _backing(maps: Maps, node_bytes: int) -> Backing:
    layout = layout_of(maps)
    assert layout is not None
    runs = [(maps[part][1] + start - maps[part][0], end - start, large) for part, start, end, large in layout.parts]
    return backing_of(runs, node_bytes)


def _stores(vm: str, pages: Mapping[int, bytes], areas: Sequence[tuple[int, bytes]]) -> Batch:
    stores: list[op.HypervisorOperation] = [op.HostWrite(spa, data) for spa, data in pages.items()]
    for vcpu, (spa, page) in enumerate(areas):
        stores += [op.HostWrite(spa, page), op.VmcbWrite(vm, vcpu, 0, Generation.PLAIN.name, spa)]
    return tuple(stores)


def _not_known(*_: object) -> op.Answer:
    raise _NowError


_TAKEN: Mapping[type, Callable[..., op.Answer]] = {
    op.NestedBuild: UnlaidVms._nested_build,  # noqa: SLF001 - the class's own table
    op.HostWrite: UnlaidVms._host_write,  # noqa: SLF001
    op.HostClear: UnlaidVms._host_clear,  # noqa: SLF001
    op.HostRead: UnlaidVms._host_read,  # noqa: SLF001
    op.PaidWrite: UnlaidVms._host_write,  # noqa: SLF001
    op.PaidClear: UnlaidVms._host_clear,  # noqa: SLF001
    op.PaidRead: UnlaidVms._host_read,  # noqa: SLF001
    op.HostReadWritten: UnlaidVms._host_read_written,  # noqa: SLF001
    op.HostWork: lambda *_: None,
    op.DiskRead: UnlaidVms._disk_read,  # noqa: SLF001
    op.VmcbWrite: UnlaidVms._vmcb_write,  # noqa: SLF001
    op.VmcbClear: UnlaidVms._vmcb_clear,  # noqa: SLF001
    op.VmRun: UnlaidVms._vmrun,  # noqa: SLF001
}
