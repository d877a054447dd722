"""A hypervisor elsewhere, as its host reaches it: every step of a task is one exchange of bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from itertools import count
from typing import Any

from node.firmware_image import FirmwareImage
from node.hypervisor_port import (
    Answers,
    Batch,
    CpuidReply,
    ExportTask,
    FillTask,
    HypervisorFigures,
    LaunchRefused,
    LaunchTask,
    ReceiveTask,
    Reply,
    Task,
)
from node.hypervisor_server import ANSWERS, BATCH, FIGURES, LOAD, TASKS, HypervisorVerb, Step
from node.machine_spec import MachineSpec
from node.operation_codec import packed, unpacked
from node.operations import PageStateChange
from node.platform import NO_FLOOR
from node.port_window import PortWindow
from node.product import Product
from node.vm_state import VmState

Exchange = Callable[[bytes], bytes]
"""Hands a request to a server and waits for its reply."""


class RemoteHypervisor:
    """A ``HypervisorPort`` over an exchange with a ``HypervisorServer``, which is loaded anew.

    Of the firmware images only the keys cross. ``operations`` counts those whose answers were sent.
    """

    def __init__(
        self,
        exchange: Exchange,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int = 0,
        ports: tuple[PortWindow, ...] = (),
    ) -> None:
        self.operations = 0
        self._exchange = exchange
        self._numbers = count()
        order = (product.name, memory_bytes, min_sev_asid, tuple(images), max_snp_asid, product.rmp.mmio, ports)
        self._ask(HypervisorVerb.LOAD, *LOAD.pack(order))

    def figures(self) -> HypervisorFigures:
        """The books as they stand."""
        figures: HypervisorFigures = FIGURES.parse(self._ask(HypervisorVerb.FIGURES))
        return figures

    def bring_up(self) -> Task:
        """Initialise the firmware."""
        return self._task("bring_up")

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch a VM up to the entry of its boot processor. Raises LaunchRefused."""
        return self._task("launch", spec)

    def destroy(self, vm: str) -> Task:
        """Take a VM apart and give every resource back."""
        return self._task("destroy", vm)

    def page_state_change(self, vm: str, change: PageStateChange) -> Reply:
        """Answer a guest's page state change. Returns 0, or 1 if refused."""
        return self._task("page_state_change", vm, change)

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Reply:
        """Answer VMGEXIT: the GHCB MSR's new value, or a negative number that ends the VM."""
        return self._task("vmgexit", vm, vcpu, value)

    def cpuid(self, vm: str, vcpu: int, function: int, index: int) -> CpuidReply:
        """Answer CPUID of a guest whose registers are not encrypted."""
        return self._task("cpuid", vm, vcpu, function, index)

    def mmio(self, vm: str, vcpu: int, gpa: int, length: int, value: int | None) -> Reply:
        """Answer a load, or with ``value`` a store, to a device by a guest whose registers are not encrypted."""
        return self._task("mmio", vm, vcpu, gpa, length, value)

    def update_firmware(self, image: bytes, commit: bool) -> Reply:
        """Bring other firmware to the security processor; its status, or a negative number if it was not asked."""
        return self._task("update_firmware", image, commit)

    def commit_firmware(self) -> Reply:
        """Commit what runs; the status."""
        return self._task("commit_firmware")

    def launch_agent(self, floor: bytes = NO_FLOOR) -> Task:
        """Launch the host's own migration agent, with this HOST_DATA."""
        return self._task("launch_agent", floor)

    def restart_agent(self, floor: bytes = NO_FLOOR) -> Task:
        """The same after the host was switched off and on."""
        return self._task("restart_agent", floor)

    def ask_devices(self, vm: str, wanted: bool) -> Task:
        """Say to a guest that its devices are wanted, or that they are not any more."""
        return self._task("ask_devices", vm, wanted)

    def roll_card_keys(self) -> Reply:
        """Give links of trusted cards in use fresh keys; how many got them."""
        return self._task("roll_card_keys")

    def release_cards(self) -> Reply:
        """Disconnect trusted cards that no VM has; how many."""
        return self._task("release_cards")

    def export(self, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]) -> ExportTask:
        """Read a stopped VM whole."""
        return self._task("export", vm, started, reset_rips)

    def receive(self, spec: MachineSpec) -> ReceiveTask:
        """Take everything that a VM which is to come will need; certificates for its sender. Raises LaunchRefused."""
        return self._task("receive", spec)

    def fill(self, spec: MachineSpec, state: VmState) -> FillTask:
        """Lay down a VM that came; its record, and its pages as they can be read back. Raises LaunchRefused."""
        return self._task("fill", spec, state)

    def seal(self, vm: str, platform: bytes) -> ReceiveTask:
        """Have firmware agree on keys with another, whose certificates these are; for it. Raises LaunchRefused."""
        return self._task("seal", vm, platform)

    def unseal(self, vm: str) -> Task:
        """The VM stays."""
        return self._task("unseal", vm)

    def open_session(self, spec: MachineSpec, session: bytes) -> Task:
        """Have firmware take what the other one has sealed. Raises LaunchRefused."""
        return self._task("open_session", spec, session)

    def set_clock(self, vm: str, vcpus: int, offset: int) -> Task:
        """What is added from now on to the counter that a VM which came reads, modulo 2^64, on each of its vCPUs."""
        return self._task("set_clock", vm, vcpus, offset)

    def depart(self, vm: str) -> Task:
        """The VM lives elsewhere: take it apart as firmware wants it then."""
        return self._task("depart", vm)

    def _task(self, name: str, *arguments: object) -> Generator[Batch, Answers, Any]:
        number, form = next(self._numbers), TASKS[name]
        step, body = self._ask(HypervisorVerb.BEGIN, number, name, form.arguments.pack(arguments))
        while step == Step.BATCH:
            answers = yield BATCH.parse(body)
            self.operations += len(answers)
            step, body = self._ask(HypervisorVerb.GO_ON, number, ANSWERS.pack(answers))
        if step == Step.REFUSED:
            raise LaunchRefused(body)
        return form.result.parse(body)

    def _ask(self, verb: HypervisorVerb, *arguments: object) -> Any:
        return unpacked(self._exchange(packed((verb, *arguments))))
