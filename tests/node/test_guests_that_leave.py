"""A guest that exports itself is gone from the firmware: its host gets everything back, and goes on."""

import struct

import pytest
from test_guest_messages import Vm
from toy_guests import SECOND, run, start

from cluster.firmware_updates import update_image
from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.guest_messages import MessageRefused
from node.product import PRODUCTS
from psp.guest_message import MessageType
from psp.status import PspError, Status


def gone():
    """A host whose guest has left by a message."""
    vm = Vm()
    gctx = vm.host.hypervisor.launched("vm").gctx
    # It cannot count the message any more: its own memory is noise to everybody.
    with pytest.raises(MessageRefused):
        vm.ask(MessageType.EXPORT_REQ, struct.pack("<QQ", gctx, 0))
    with pytest.raises(PspError) as refused:
        vm.host.board.psp.launch_record(gctx)
    assert refused.value.status is Status.INVALID_GUEST
    return vm


def test_its_memory_is_nobody_s_from_the_moment_that_it_leaves():
    vm = gone()
    (answer,) = vm.step(iter_of(op.Read(vm.messages.place.secrets_gpa, 16)))
    assert isinstance(answer, op.Fault)


def iter_of(operation):
    def asking():
        yield (operation,)

    return asking()


def test_the_host_takes_everything_back_and_launches_the_next():
    vm = gone()
    vm.host.destroy("vm")
    run(vm.host, vm.host.now_ns + SECOND)
    books = vm.host.hypervisor.figures()
    assert (books.asids_in_use, vm.host.board.psp.snp.guests.pages.spas) == (0, {})
    again = start(vm.host, "again", Generation.SEV_SNP)
    assert again.state is GuestState.RUNNING


def test_firmware_is_replaced_over_it():
    vm = gone()
    vm.host.firmware.update(update_image(PRODUCTS["Milan"], "1.55.29"), commit=False)
    run(vm.host, vm.host.now_ns + SECOND)
    assert vm.host.firmware.entries[0].result == "SUCCESS"


def test_a_guest_that_exports_itself_to_run_on_runs_on():
    vm = Vm()
    gctx = vm.host.hypervisor.launched("vm").gctx
    answered = vm.ask(MessageType.EXPORT_REQ, struct.pack("<QQ", gctx, 1))
    assert answered.payload[:12] == struct.pack("<III", 0, 0x300, 2)
    assert vm.count == 2
    vm.ask()
    assert vm.count == 4
