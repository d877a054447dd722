"""A hypervisor that may do something of its own while it brings its host up, and that puts a victim where it likes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from node.agent_transfer import lay_back, take_frames
from node.firmware_image import FirmwareImage
from node.guest_memory_map import memory_map
from node.hypervisor import Hypervisor
from node.hypervisor_port import Answers, Batch, LaunchTask, Task
from node.machine_spec import MachineSpec
from node.operations import HostWrite, PspCommand
from node.port_window import PortWindow
from node.product import Product
from node.rmp_layout import at_end_of_memory
from node.vm_state import VmState
from psp.command_buffers import SNP_INIT_RAPL_DIS, SnpInitEx, SnpLaunchStart
from psp.commands import SnpCommand
from psp.policy import SnpPolicy
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from workloads.attacks import vault
from workloads.attacks.target import Attack, Ground
from workloads.attacks.vault import Vault

_Told = TypeVar("_Told")
Prelude = Callable[[Ground], Attack]

_TABLES_BYTES = 32 << 20
"""Left free at the end of memory for nested tables; no guest's memory fits."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a hypervisor is told about its host, beside what every one is.

    A ``prelude`` is a part of its bring-up: right before SNP_INIT_EX, and after it; without SNP at the end. A
    first guest of ``guest_bytes`` then gets its memory in two pieces, between which ``ground.log`` lies.
    """

    prelude: Prelude | None
    guest_bytes: int
    policy: int = 0
    """What owners of SNP guests demand beside the usual, of the host too; firmware knows whether they got it."""


class BadHypervisor(Hypervisor):
    """One that follows its orders."""

    def __init__(
        self,
        orders: Orders,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int = 0,
        ports: tuple[PortWindow, ...] = (),
    ) -> None:
        super().__init__(product, memory_bytes, min_sev_asid, images, max_snp_asid, ports)
        self._orders = orders
        self._held: list[tuple[int, int]] = []
        rmp = at_end_of_memory(memory_bytes, segmented=product.rmp.segmented, mmio=product.rmp.mmio)
        self.ground = Ground(rmp, self._make_gap(orders.guest_bytes) if orders.prelude else 0)

    def bring_up(self) -> Task:
        """As every hypervisor does it, but for the prelude."""
        task = super().bring_up()
        if self._orders.policy:
            task = _under(self._orders.policy, task)
        prelude = self._orders.prelude
        return task if prelude is None else _with(task, prelude(self.ground))

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """As every hypervisor does it, under the owner's policy."""
        task = super().launch(spec)
        return _under(self._orders.policy, task) if self._orders.policy else task

    def let_go(self) -> None:
        """The first guest has its memory: what was kept from it is free for others."""
        if self._held:
            self.frames.release(self._held)
            self._held = []

    def lay_back(self, vm: str, state: VmState) -> Task:
        """Have the pages of a guest whose context was exported come in by it again. Raises LaunchRefused."""
        record = self.launched(vm)
        yield from take_frames(self, record)
        record.gctx = record.left
        yield from lay_back(self, record, state)

    def _make_gap(self, guest_bytes: int) -> int:
        """Leave two free pieces for a guest's memory; the page before that in which its value lies."""
        value = Vault(memory_map(guest_bytes, 1).placement("", 0, 0)).private(vault.VALUE)
        below = value // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        first = self._take(below)
        gap = self._take(LARGE_PAGE_BYTES)
        second = self._take(guest_bytes - below)
        rest = self.frames.free_bytes - _TABLES_BYTES
        self._held = [self._take(rest // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES)]
        self.frames.release([first, second])
        return gap[0] + LARGE_PAGE_BYTES - PAGE_BYTES

    def _take(self, length: int) -> tuple[int, int]:
        (piece,) = self.frames.allocate(length, LARGE_PAGE_BYTES)
        return piece


def _under(policy: int, task: Generator[Batch, Answers, _Told]) -> Generator[Batch, Answers, _Told]:
    answers: Answers | None = None
    while True:
        try:
            batch = task.send(answers)  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        match batch:
            case (PspCommand(SnpCommand.LAUNCH_START as command, spa, buffer),):
                start = SnpLaunchStart.parse(buffer)
                answers = yield (PspCommand(command, spa, replace(start, policy=start.policy | policy).pack()),)
            case (PspCommand(SnpCommand.INIT_EX as command, spa, buffer),) if policy & SnpPolicy.RAPL_DIS:
                init = SnpInitEx.parse(buffer)
                answers = yield (PspCommand(command, spa, replace(init, flags=init.flags | SNP_INIT_RAPL_DIS).pack()),)
            case _:
                answers = yield batch


def _with(bring_up: Task, prelude: Attack) -> Task:
    answers: Answers | None = None
    while True:
        try:
            batch = bring_up.send(answers)  # type: ignore[arg-type]  # None begins it
        except StopIteration:
            break
        match batch:
            case (PspCommand(SnpCommand.INIT_EX, spa, buffer),):
                # Laid down before: in the meantime the hypervisor may have nowhere left to store to.
                yield (HostWrite(spa, buffer),)
                yield from _a_part_of(prelude)
                answers = yield (PspCommand(SnpCommand.INIT_EX, spa),)
                yield from _a_part_of(prelude)
            case _:
                answers = yield batch
    yield from _a_part_of(prelude)
    yield from _a_part_of(prelude)


def _a_part_of(prelude: Attack) -> Task:
    """Play it until it lets others go on."""
    answers: Answers | None = None
    while True:
        try:
            batch = prelude.send(answers)  # type: ignore[arg-type]
        except StopIteration:
            return
        if not batch:
            return
        answers = yield cast("Batch", batch)
