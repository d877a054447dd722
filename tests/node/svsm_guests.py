"""VMs with an SVSM, whose program is a test's own list of steps at VMPL 2."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from toy_guests import IMAGE, SECOND, guest_spec, make_host, run, script

from node import operations as op
from node.generation import Generation
from node.guest_svsm import SvsmAnswer, svsm_call
from node.kernel_settings import KernelSettings
from node.operations import Sleep
from node.program import Placement, Registers
from node.svsm_memory import svsm_guest

SNP = Generation.SEV_SNP
PLACE = svsm_guest(IMAGE, (0, 0))
CAA = 0x80_F000
"""Where the laboratory's OVMF image has its calling area: ``SECTIONS`` of ``node.laboratory_firmware``."""
PAGES = [PLACE.heap_gpa + 0x1_0000 + 0x1000 * number for number in range(8)]
"""Pages of 4 KiB that the kernel has no use for."""

HANDS_OFF = KernelSettings(handles_vc=False)
"""What is not validated, and other #VC, comes back to the talk as an answer."""

Talk = Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], object]


class Talker:
    """The hands of a program at VMPL 2: steps to be used with ``yield from``."""

    def __init__(self, registers: Registers, placement: Placement) -> None:
        self.registers = registers
        self.placement = placement

    def call(self, protocol, call, rcx=0, rdx=0, r8=0, caa=CAA, ghcb=None) -> Generator[object, object, SvsmAnswer]:
        return (yield from svsm_call(self.registers, caa, protocol, call, rcx, rdx, r8, ghcb))

    def do(self, *batch):
        answers = yield batch
        return answers[0] if len(batch) == 1 else answers


class SvsmVm:
    """A VM with an SVSM whose first vCPU talks once, and its second if there is ``others``; ``said`` is the outcome."""

    def __init__(
        self, talk: Callable[[Talker], Talk], vcpus: int = 2, host=None, until_ns: int = SECOND, others=None,
        kernel: KernelSettings = HANDS_OFF,
    ) -> None:  # fmt: skip
        self.said: object = None
        self.others = others
        self.others_said: object = None
        self.host = host or make_host({"talk": script(self._step)})
        self.talk = talk
        spec = replace(guest_spec("vm", SNP, "talk", vcpus=vcpus), svsm=True, kernel=kernel)
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]
        run(self.host, until_ns)

    def _step(self, placement, registers):
        if placement.vcpu == 0 and registers.rbx == 0:
            registers.rbx = 1
            self.said = yield from self.talk(Talker(registers, placement))
        if placement.vcpu == 1 and registers.rbx == 0 and self.others:
            registers.rbx = 1
            self.others_said = yield from self.others(Talker(registers, placement))
        return Sleep(10**18)
        yield ()

    @property
    def record(self):
        return self.host.hypervisor.launched("vm")

    def rmp(self, gpa):
        return self.host.board.rmp.entry(self.spa(gpa))

    def spa(self, gpa):
        return self.record.spa_of(gpa)

    def as_vmpl0(self, gpa, length):
        """What lies somewhere, through the guest's key."""
        return self.host.board.controller.read(self.spa(gpa), length, self.guest.asid)


def said_by(talk: Callable[[Talker], Talk], vcpus: int = 2):
    """What a talk came to in a VM of its own."""
    vm = SvsmVm(talk, vcpus)
    assert vm.said is not None, (vm.guest.state, vm.guest.reason, vm.guest.shutdown_code)
    return vm.said
