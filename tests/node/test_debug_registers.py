"""DR7: whose it is, per generation and with DebugSwap (matrix row 26a), and that nothing else is."""

import pytest
from toy_guests import GENERATIONS, SECOND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.operations import ReadDr7, Sleep, WriteDr7
from node.vmsa import VMSA_FIELDS, SevFeature

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
DR7, FEATURES = VMSA_FIELDS["DR7"], VMSA_FIELDS["SEV_FEATURES"]
SET, FORGED = 0x401, 0x7F7


def guest(generation):
    """A guest that sets DR7 and rests, then reads it."""
    read = []

    def program(_place, registers):
        if registers.r13:
            read.append((yield (ReadDr7(),))[0])
            return Sleep(10**18)
        read.append((yield (WriteDr7(SET), ReadDr7()))[1])
        registers.r13 += 1
        return Sleep(SECOND)

    host = make_host({"debugged": script(program)})
    one = start(host, "vm", generation, "debugged")
    return host, one, read


def forge(host, one):
    """Everything that a hypervisor can do about DR7: in its own records, and in the save area."""
    record = host.hypervisor.launched("vm")
    if record.dr7:
        record.dr7[0, 0] = FORGED
    spa = one.vcpus[0].save_area_spa + DR7.offset
    return host.board.execute_host((op.HostWrite(spa, FORGED.to_bytes(8, "little")),))[0]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_hypervisor_alters_dr7_of_every_guest_without_debug_swap(generation):
    host, one, read = guest(generation)
    run(host, SECOND // 2)
    assert read == [SET]
    if generation is ES:
        # Its save area has a value to be told by; the forged record is enough.
        host.hypervisor.launched("vm").dr7[0, 0] = FORGED
    else:
        forge(host, one)
    run(host, 3 * SECOND)
    assert (read, one.state) == ([SET, FORGED], GuestState.RUNNING)


def kept(host, write=None):
    vmcb = host.board.vmcb("vm", 0)
    batch = (op.ReadDr7(),) if write is None else (op.WriteDr7(write), op.ReadDr7())
    return host.board.execute_guest(vmcb, batch)[-1]


@pytest.mark.parametrize("generation", [ES, SNP])
def test_with_debug_swap_dr7_is_in_the_save_area_where_no_hypervisor_reaches(generation):
    host = make_host()
    one = start(host, "vm", generation)
    run(host, SECOND)
    assert kept(host).error == 0x27
    assert host.board.execute_guest(host.board.vmcb("vm", 0), (op.WriteDr7(1),))[0].error == 0x37
    features = int(SevFeature.DEBUG_SWAP | (generation is SNP))
    host.board.save_areas.store_field(host.board.vmcb("vm", 0), FEATURES.offset, features.to_bytes(8, "little"))
    assert kept(host) == 0x400
    assert kept(host, SET) == SET
    stored = forge(host, one)
    if generation is SNP:
        assert stored.kind is op.FaultKind.RMP_FAULT
        assert kept(host) == SET
    else:
        # Found when the vCPU is entered again.
        host.pause("vm")
        host.resume("vm")
        assert (one.state, one.shutdown_code) == (GuestState.STOPPED, 0x7F)


@pytest.mark.parametrize("value", [-1, 1 << 32, 1 << 64])
def test_dr7_has_32_bits(value):
    host = make_host()
    start(host, "vm", PLAIN)
    assert kept(host, SET) == SET
    (answer,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.WriteDr7(value),))
    assert answer.kind is op.FaultKind.GENERAL_PROTECTION
    assert kept(host) == SET
