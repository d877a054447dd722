"""The list of APIC IDs: what a hypervisor writes, and what a guest believes of it."""

from __future__ import annotations

import struct

import pytest
from toy_guests import SECOND, make_host, run, script, start

from node import ghcb_msr as msr
from node import operations as op
from node.apic_id_list import ask_apic_ids
from node.generation import Generation
from node.ghcb_page import BadInput, GhcbUntrusted, build_exit, build_reply
from node.nae_event import NaeEvent
from psp.system_bus import PAGE_BYTES

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
GHCB, LIST = 0x20_0000, 0x20_1000


class Guest:
    """A guest of three vCPUs that is up, and the hands of its kernel."""

    def __init__(self, generation=SNP):
        self.host = make_host()
        self.guest = start(self.host, "vm", generation, vcpus=3)
        run(self.host, SECOND // 50)
        self.ghcb = self.guest.spec.memory.shared.gpa
        self.do(op.VmgExit(msr.RegisterGhcbRequest(self.ghcb >> 12).value))

    def do(self, *batch):
        return self.host.board.execute_guest(self.host.board.vmcb("vm", 0), batch)

    def ask(self, gpa, pages):
        """RAX and both words of information that come back."""
        page = build_exit(NaeEvent.APIC_ID_LIST, gpa, registers={"RAX": pages})
        batch = op.Write(self.ghcb, page, private=False), op.VmgExit(self.ghcb), op.Read(self.ghcb, 4096, private=False)
        back = self.do(*batch)[2]
        return tuple(int.from_bytes(back[at : at + 8], "little") for at in (0x1F8, 0x398, 0x3A0))


@pytest.fixture(scope="module")
def guest():
    return Guest()


def test_every_vcpu_of_the_vm_stands_in_the_list(guest):
    at = guest.ghcb + PAGE_BYTES
    assert guest.ask(at, 1)[1:] == (0, 0)
    (data,) = guest.do(op.Read(at, 16, private=False))
    assert struct.unpack("<4I", data) == (3, 0, 1, 2)


def test_too_few_pages_are_told_how_many_it_takes(guest):
    assert guest.ask(guest.ghcb + PAGE_BYTES, 0) == (1, 0, 0)


@pytest.mark.parametrize("where", ["unaligned", "private", "nowhere"])
def test_no_list_goes_where_the_guest_shares_nothing(guest, where):
    at = {"unaligned": guest.ghcb + 8, "private": 0x3000, "nowhere": 1 << 40}[where]
    assert guest.ask(at, 1)[1:] == (2, BadInput.INVALID_INPUT)


def test_a_guest_without_an_rmp_has_no_such_exit():
    assert Guest(ES).ask(0x20_3000, 1)[1:] == (2, BadInput.INVALID_EVENT)


def test_a_guest_gets_its_ids_through_a_program_too():
    said = []

    def step(placement, registers):
        page = placement.shared_gpa
        if not placement.vcpu and not registers.r13:
            yield (op.VmgExit(msr.RegisterGhcbRequest(page // PAGE_BYTES).value),)
            said.append((yield from ask_apic_ids(page, page + PAGE_BYTES)))
        registers.r13 += 1
        return op.Sleep(10**18)
        yield ()

    host = make_host({"asks": script(step)})
    start(host, "vm", SNP, "asks", vcpus=2)
    run(host, SECOND // 10)
    assert said == [(0, 1)]


def told(count, *ids, info1=0):
    """What a guest makes of a list that a hypervisor made up."""
    steps = ask_apic_ids(GHCB, LIST)
    next(steps)
    steps.send((None,))
    steps.send((None, GHCB, build_reply(info1, 0).ljust(PAGE_BYTES, b"\0")))
    with pytest.raises(StopIteration) as done:
        steps.send((struct.pack(f"<{len(ids) + 1}I", count, *ids).ljust(PAGE_BYTES, b"\0"),))
    return done.value.value


def test_a_guest_believes_no_list_that_cannot_be():
    assert told(3, 0, 5, 9) == (0, 5, 9)
    for lie in ((0,), (1024, 0), (2, 7, 7), ((1 << 32) - 1, 0)):
        with pytest.raises(GhcbUntrusted):
            told(*lie)
    with pytest.raises(GhcbUntrusted):
        told(1, 0, info1=2)
