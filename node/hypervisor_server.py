"""A hypervisor behind bytes: where it lives in a process of its own, a request goes in and a reply comes out.

The server keeps the tasks that are under way by the numbers that its caller gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from enum import IntEnum
from typing import Any, NamedTuple

from node.firmware_image import FirmwareImage
from node.hypervisor import Hypervisor
from node.hypervisor_port import Answers, Batch, Entered, HypervisorFigures, LaunchRefused
from node.machine_spec import MachineSpec
from node.operation_codec import CodecError, Form, form_of, packed, unpacked
from node.operations import CpuidResult, PageStateChange
from node.port_window import PortWindow
from node.product import PRODUCTS
from node.vm_state import VmState


class HypervisorVerb(IntEnum):
    """What is asked; what comes with it, and what the reply is made of."""

    LOAD = 0
    """Product, bytes of memory, least SEV ASID, keys of firmware images, last ASID for SNP, MMIO that the RMP covers,
    and root ports. Reply: nothing."""
    BEGIN = 1
    """The task's number, what it is to do, and arguments. Reply: a step and what it came to."""
    GO_ON = 2
    """The task's number, and answers. Reply: as for BEGIN."""
    FIGURES = 3
    """Reply: the books."""


class Step(IntEnum):
    """How far a task came."""

    BATCH = 0
    DONE = 1
    REFUSED = 2


class TaskForm(NamedTuple):
    """What a task is given, and what it comes to."""

    arguments: Form
    result: Form


TASKS: Mapping[str, TaskForm] = {
    "bring_up": TaskForm(form_of(tuple[()]), form_of(None)),
    "launch": TaskForm(form_of(tuple[MachineSpec]), form_of(Entered)),
    "destroy": TaskForm(form_of(tuple[str]), form_of(None)),
    "page_state_change": TaskForm(form_of(tuple[str, PageStateChange]), form_of(int)),
    "vmgexit": TaskForm(form_of(tuple[str, int, int]), form_of(int)),
    "cpuid": TaskForm(form_of(tuple[str, int, int, int]), form_of(CpuidResult)),
    "mmio": TaskForm(form_of(tuple[str, int, int, int, int | None]), form_of(int)),
    "update_firmware": TaskForm(form_of(tuple[bytes, bool]), form_of(int)),
    "commit_firmware": TaskForm(form_of(tuple[()]), form_of(int)),
    "launch_agent": TaskForm(form_of(tuple[bytes]), form_of(None)),
    "restart_agent": TaskForm(form_of(tuple[bytes]), form_of(None)),
    "roll_card_keys": TaskForm(form_of(tuple[()]), form_of(int)),
    "release_cards": TaskForm(form_of(tuple[()]), form_of(int)),
    "ask_devices": TaskForm(form_of(tuple[str, bool]), form_of(None)),
    "export": TaskForm(form_of(tuple[str, tuple[bool, ...], tuple[int, ...]]), form_of(VmState)),
    "receive": TaskForm(form_of(tuple[MachineSpec]), form_of(bytes)),
    "fill": TaskForm(form_of(tuple[MachineSpec, VmState]), form_of(tuple[Entered, bytes])),
    "seal": TaskForm(form_of(tuple[str, bytes]), form_of(bytes)),
    "unseal": TaskForm(form_of(tuple[str]), form_of(None)),
    "open_session": TaskForm(form_of(tuple[MachineSpec, bytes]), form_of(None)),
    "set_clock": TaskForm(form_of(tuple[str, int, int]), form_of(None)),
    "depart": TaskForm(form_of(tuple[str]), form_of(None)),
}
"""The tasks of ``HypervisorPort``, by their names there."""

BATCH = form_of(Batch)
ANSWERS = form_of(Answers)
FIGURES = form_of(HypervisorFigures)
LOAD = form_of(tuple[str, int, int, tuple[str, ...], int, tuple[int, int], tuple[PortWindow, ...]])

_Task = Generator[Batch, Answers, object]


class HypervisorServer:
    """``image`` finds the firmware image of a key; ``operations`` counts those whose answers came back."""

    def __init__(self, image: Callable[[str], FirmwareImage]) -> None:
        self.operations = 0
        self._image = image
        self._hypervisor: Hypervisor | None = None
        self._tasks: dict[int, tuple[_Task, Form]] = {}
        self._verbs: Mapping[int, Callable[..., Any]] = {
            HypervisorVerb.LOAD: self._load,
            HypervisorVerb.BEGIN: self._begin,
            HypervisorVerb.GO_ON: self._go_on,
            HypervisorVerb.FIGURES: self._figures,
        }

    def exchange(self, request: bytes) -> bytes:
        """Do what is asked. Raises CodecError for what is no request, and what a task raises but LaunchRefused."""
        verb, *arguments = unpacked(request)
        return packed(self._verbs[verb](*arguments))

    def _load(self, *order: Any) -> None:
        name, memory_bytes, min_sev_asid, keys, max_snp_asid, mmio, ports = LOAD.parse(order)
        images = {key: self._image(key) for key in keys}
        product = PRODUCTS[name]
        if mmio != product.rmp.mmio:
            product = replace(product, rmp=replace(product.rmp, mmio=mmio))
        self._hypervisor = Hypervisor(product, memory_bytes, min_sev_asid, images, max_snp_asid, ports)
        self._tasks = {}
        self.operations = 0

    def _begin(self, number: int, name: str, arguments: Any) -> tuple[int, Any]:
        form = TASKS.get(name)
        if form is None:
            raise CodecError(f"task: expected one of {', '.join(TASKS)}, got {name}")
        task: _Task = getattr(self._hypervisor, name)(*form.arguments.parse(arguments))
        self._tasks[number] = task, form.result
        return self._step(number, None)

    def _go_on(self, number: int, answers: Any) -> tuple[int, Any]:
        there: Answers = ANSWERS.parse(answers)
        self.operations += len(there)
        return self._step(number, there)

    def _step(self, number: int, answers: Answers | None) -> tuple[int, Any]:
        task, result = self._tasks[number]
        try:
            return Step.BATCH, BATCH.pack(task.send(answers))  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            del self._tasks[number]
            return Step.DONE, result.pack(end.value)
        except LaunchRefused as refusal:
            del self._tasks[number]
            return Step.REFUSED, str(refusal)

    def _figures(self) -> Any:
        assert self._hypervisor is not None
        return FIGURES.pack(self._hypervisor.figures())
