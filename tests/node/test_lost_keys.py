"""A hypervisor takes a running VM's key: the VM ends, its host goes on."""

from __future__ import annotations

import pytest
from toy_guests import SECOND, make_host, run, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from psp.commands import LegacyCommand


@pytest.mark.parametrize("program", ["rest", "busy"])
def test_a_vm_whose_key_its_hypervisor_took_ends_at_its_next_exit(program):
    """Nothing keeps its registers then; the host and its other VMs go on."""
    for interrupt in (
        lambda host: host.board.execute_host((op.VmKick("vm", 0),)),
        lambda host: host.pause("vm", lambda *_: None),
    ):
        host = make_host(product="Milan")
        guest = start(host, "vm", Generation.SEV_ES, program)
        run(host, 2 * SECOND)
        (answer,) = host.board.execute_host(
            (op.PspCommand(LegacyCommand.DEACTIVATE, 0x10000, (1).to_bytes(4, "little")),)
        )
        assert answer.status == 0
        interrupt(host)
        run(host, 4 * SECOND)
        assert guest.state is GuestState.STOPPED
