"""Secure TSC: a guest's clock is what firmware set at launch, on every vCPU, whatever its hypervisor stores."""

from dataclasses import replace

import pytest
from toy_guests import SECOND, guest_spec, make_host, run, script

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.operations import ReadTsc, Sleep
from node.vcpu_runner import TERMINATED
from node.vmsa import SevFeature
from psp.commands import SnpCommand
from psp.status import Status

ENOUGH = 1 << 40
SECURE = int(SevFeature.SECURE_TSC)


class Vm:
    """A guest whose vCPUs read their clock once a second."""

    def __init__(self, features=0, generation=Generation.SEV_SNP, vcpus=2, before=lambda _: None):
        self.read = {}
        self.host = make_host({"clock": script(self.step)})
        before(self.host)
        spec = replace(guest_spec("vm", generation, "clock", vcpus=vcpus), sev_features=features)
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]

    def step(self, placement, registers):
        (counted,) = yield (ReadTsc(),)
        self.read.setdefault(placement.vcpu, []).append((self.host.now_ns, counted))
        return Sleep(SECOND)

    def add(self, ticks, vcpu=0):
        assert self.host.board.execute_host((op.VmcbStore("vm", vcpu, "TSC_OFFSET", ticks),)) == (None,)

    @property
    def hz(self):
        return self.host.spec.product.base_hz


def refuse_guest_requests(host):
    submit = host.board.psp.submit
    host.board.psp.submit = lambda command, at: (
        Status.INVALID_PARAM if command == SnpCommand.GUEST_REQUEST else submit(command, at)
    )


@pytest.mark.parametrize("features", [0, SECURE])
def test_every_vcpu_s_clock_runs_at_the_host_s_rate(features):
    vm = Vm(features)
    run(vm.host, 4 * SECOND)
    assert vm.guest.state is GuestState.RUNNING
    assert set(vm.read) == {0, 1}
    for seen in vm.read.values():
        assert len(seen) >= 3
        assert all(counted == now_ns * vm.hz // SECOND for now_ns, counted in seen)


@pytest.mark.parametrize(
    ("generation", "features", "moves"),
    [
        (Generation.PLAIN, 0, True),
        (Generation.SEV, 0, True),
        (Generation.SEV_ES, 0, True),
        (Generation.SEV_SNP, 0, True),
        (Generation.SEV_SNP, SECURE, False),
    ],
)
def test_a_hypervisor_tells_its_guest_any_time_unless_the_clock_is_the_guest_s_own(generation, features, moves):
    vm = Vm(features, generation, vcpus=1)
    run(vm.host, SECOND)
    vm.add(-ENOUGH & (1 << 64) - 1)
    run(vm.host, 3 * SECOND)
    now_ns, counted = vm.read[0][-1]
    assert (counted != now_ns * vm.hz // SECOND) == moves
    if moves:
        assert counted == (now_ns * vm.hz // SECOND - ENOUGH) % (1 << 64)


def test_the_clock_was_set_by_firmware_and_others_have_it_from_the_boot_processor():
    vm = Vm(SECURE)
    run(vm.host, SECOND)
    controls, board = vm.host.board.controls, vm.host.board
    for vcpu in range(2):
        area = board.vmcb("vm", vcpu)
        assert controls.load(area, "GUEST_TSC_SCALE") == 1 << 32
        assert controls.load(area, "SEV_FEATURES") & SECURE
    plain = Vm()
    run(plain.host, SECOND)
    assert plain.host.board.controls.load(plain.host.board.vmcb("vm", 0), "GUEST_TSC_SCALE") == 0


def test_the_launch_digest_tells_whether_the_clock_is_the_guest_s_own():
    one, another = Vm(SECURE), Vm()
    assert one.guest.launch_digest != another.guest.launch_digest


def test_a_guest_that_firmware_tells_no_clock_ends():
    vm = Vm(SECURE, before=refuse_guest_requests)
    run(vm.host, SECOND)
    assert vm.read == {}
    reason = 1 << 8 | 10  # of Linux's own: no Secure TSC
    assert (vm.guest.state, vm.guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | reason)
