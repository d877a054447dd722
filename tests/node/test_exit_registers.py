"""What an exit leaves in a save area: registers as they are, or masked with a nonce that is new each time."""

from dataclasses import replace

import pytest
from toy_guests import GENERATIONS, MIX, SECOND, guest_spec, make_host, run, script

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.platform import Platform, Protection
from node.vcpu import VcpuState
from node.vmsa import VMSA_FIELDS, SevFeature, read_field
from psp.system_bus import PAGE_BYTES

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
MASKED = int(SevFeature.VMSA_REGISTER_PROTECTION)
R13 = VMSA_FIELDS["R13"].offset


class Guest:
    """A guest that counts in R13 and stores the count, once a second."""

    def __init__(self, generation: Generation, features: int = 0, *disabled: Protection) -> None:
        self.host = make_host({"vm": script(self._program)}, platform=Platform(disabled=frozenset(disabled)))
        spec = replace(guest_spec("vm", generation, "vm"), sev_features=features)
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]
        self.on(SECOND // 2)
        self.area = self.guest.vcpus[0].save_area_spa

    def _program(self, place, registers):
        registers.r13 += 1
        registers.rsp = 0x7000
        yield (op.Write(place.base_gpa, registers.r13.to_bytes(8, "little")),)
        return op.Sleep(SECOND)

    def by_host(self, *batch):
        return self.host.board.execute_host(batch)

    def on(self, more_ns: int = SECOND * 3 // 2) -> None:
        run(self.host, self.host.now_ns + more_ns)

    def exited(self) -> bytes:
        """The save area as the hypervisor finds it right after an exit."""
        code, page = self.by_host(op.VmKick("vm", 0), op.HostRead(self.area, PAGE_BYTES))
        assert code == 0
        return page

    def hold(self) -> None:
        """Stop it at its store."""
        gpa = self.guest.spec.memory.placement("vm", 0, 11).base_gpa
        spa = self.host.board.vmcb("vm", 0).nested.translate(gpa, 1)[0][0]
        if self.guest.spec.generation is SNP:
            self.by_host(op.PSmash(spa // (2 << 20) * (2 << 20)))
        self.by_host(op.TraceFaults("vm", on=True), op.NestedUnmap("vm", gpa, PAGE_BYTES))
        self.on()
        assert self.guest.vcpus[0].state is VcpuState.HELD
        self.by_host(op.NestedMap("vm", gpa, spa, PAGE_BYTES))

    @property
    def count(self) -> int:
        return self.guest.vcpus[0].registers.r13


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_interrupt_stores_registers_for_whoever_can_read_them(generation: Generation) -> None:
    guest = Guest(generation)
    for count in (1, 2):
        page = guest.exited()
        in_the_clear = (read_field(page, "RIP"), read_field(page, "R13")) == (MIX, count)
        assert in_the_clear is (generation not in (ES, SNP))
        assert read_field(guest.host.board.save_areas.load(guest.host.board.vmcb("vm", 0)), "R13") == count
        guest.on()
    assert guest.count == 3


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_is_changed_there_during_a_nested_fault_is_taken_detected_or_refused(generation: Generation) -> None:
    guest = Guest(generation)
    guest.hold()
    assert guest.count == 2
    (stored,) = guest.by_host(op.HostWrite(guest.area + R13, (7).to_bytes(8, "little")))
    assert (stored is None) is (generation is not SNP)
    (code,) = guest.by_host(op.VmKick("vm", 0))
    assert code == (0x7F if generation is ES else 0)
    guest.on(SECOND // 2)
    assert guest.count == (2 if generation in (ES, SNP) else 7)
    assert (guest.guest.vcpus[0].state is VcpuState.HELD) is (generation is ES)


def same_blocks(one: bytes, other: bytes) -> set[int]:
    return {at for at in range(0, 0x400, 16) if one[at : at + 16] == other[at : at + 16]}


def blocks(*names: str) -> set[int]:
    return {VMSA_FIELDS[name].offset // 16 * 16 for name in names}


def test_masked_registers_are_other_ciphertext_at_each_exit() -> None:
    guest = Guest(SNP, MASKED)
    pages = [guest.exited() for _ in range(3)]
    general = blocks("RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", "RSP", "RIP", "REG_PROT_NONCE")
    general |= blocks(*[f"R{number}" for number in range(8, 16)])
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert same_blocks(pages[one], pages[other]) == set(range(0, 0x400, 16)) - general
    assert not blocks("CR0", "CR3", "EFER", "SEV_FEATURES") & general


def test_the_guest_finds_them_as_it_left_them() -> None:
    guest = Guest(SNP, MASKED)
    guest.exited()
    guest.on()
    guest.host.pause("vm")
    guest.on()
    guest.host.resume("vm")
    guest.on(4 * SECOND)
    vcpu = guest.guest.vcpus[0]
    assert (guest.guest.state, vcpu.registers.rsp, guest.count > 3) == (GuestState.RUNNING, 0x7000, True)
    page = guest.host.board.controller.read(guest.area, PAGE_BYTES, guest.host.board.vmcb("vm", 0).asid)
    assert read_field(page, "RSP") == 0x7000 ^ read_field(page, "REG_PROT_NONCE") != 0x7000


@pytest.mark.parametrize("features", [0, MASKED])
def test_without_a_new_nonce_the_same_registers_are_the_same_ciphertext(features: int) -> None:
    guest = Guest(SNP, features, Protection.REGISTER_NONCE)
    assert guest.exited() == guest.exited()


def test_another_kind_of_guest_has_no_masks() -> None:
    guest = Guest(ES, MASKED)
    assert guest.exited() == guest.exited()
