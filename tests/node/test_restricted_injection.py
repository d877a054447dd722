"""Restricted injection between a guest and its hypervisor: the #HV doorbell page, and interrupts through it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from toy_guests import SECOND, guest_spec, make_host, run, spa

from node import ghcb_msr as msr
from node import operations as op
from node.event_injection import exception
from node.generation import Generation
from node.ghcb_msr import HypervisorFeature
from node.ghcb_page import BadInput, GhcbUntrusted, build_exit, parse_reply
from node.guest import GuestState
from node.guest_doorbell import GuestDoorbell
from node.guest_events import back, lay_gates
from node.hv_doorbell import NOWHERE
from node.nae_event import NaeEvent
from node.sev_features import SEV_FEATURES
from node.vcpu_runner import TERMINATED
from node.vmsa import SevFeature
from psp.system_bus import PAGE_BYTES

SNP = Generation.SEV_SNP
REST, ALT = SevFeature.RESTRICTED_INJECTION, SevFeature.ALTERNATE_INJECTION
MAIN, HV_RIP, IRQ_RIP = 0x40_0000, 0x40_8000, 0x40_9000
IF = 1 << 9
VECTOR = 0x45


@dataclass
class Life:
    irqs: int = 0
    hv: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class Restricted:
    """Registers its doorbell and rests; ``masked`` with interrupts off for its first three rests."""

    placement: object
    life: Life
    masked: bool = False

    entry = MAIN
    demands = ()

    @property
    def doorbell(self):
        shared = self.placement.shared_gpa
        return GuestDoorbell(shared, shared + PAGE_BYTES, {VECTOR: IRQ_RIP})

    @property
    def blocks(self):
        return {MAIN: self._open, MAIN + 1: self._rest, HV_RIP: self._rung, IRQ_RIP: self._irq}

    def _open(self, registers):
        base = self.placement.base_gpa
        registers.rsp = base + 2 * PAGE_BYTES
        yield (op.VmgExit(msr.RegisterGhcbRequest(self.doorbell.ghcb_gpa >> 12).value),)
        yield (*lay_gates(base, {28: HV_RIP, VECTOR: IRQ_RIP}), op.WriteFlags(0 if self.masked else IF))
        try:
            yield from self.doorbell.register()
        except GhcbUntrusted:
            return op.Shutdown(9)
        registers.rip = MAIN + 1
        return None

    def _rest(self, registers):
        self.life.rounds += 1
        if self.masked and self.life.rounds == 3:
            yield from self.doorbell.open_up()
            return None
        return op.Sleep(SECOND)
        yield ()

    def _rung(self, registers):
        self.life.hv += 1
        yield from self.doorbell.rung(registers)

    def _irq(self, registers):
        self.life.irqs += 1
        yield from back(registers)


class Guest:
    def __init__(self, features: int = REST, masked: bool = False) -> None:
        self.life = Life()
        self.host = make_host({"vm": lambda _, place: Restricted(place, self.life, masked)})
        spec = replace(guest_spec("vm", SNP, "vm"), sev_features=int(features))
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]
        run(self.host, SECOND // 2)
        self.shared = spec.memory.placement("vm", 0, 11).shared_gpa

    def interrupt(self, vector: int = VECTOR) -> object:
        server, record = self.host.hypervisor._ghcb.interrupts, self.host.hypervisor.launched("vm")
        return self.host.tasks.at_once(server.interrupt("vm", record, 0, vector))

    def on(self, until_ns: int = 1_000_000) -> None:
        run(self.host, self.host.now_ns + until_ns)

    def page(self) -> bytes:
        vmcb = self.host.board.vmcb("vm", 0)
        (octets,) = self.host.board.execute_guest(vmcb, (op.Read(self.shared + PAGE_BYTES, 3, private=False),))
        return octets

    def ask(self, code: int, info1: int = 0, info2: int = 0) -> bytes:
        batch = (
            op.Write(self.shared, build_exit(code, info1, info2), private=False),
            op.VmgExit(self.shared),
            op.Read(self.shared, PAGE_BYTES, private=False),
        )
        return self.host.board.execute_guest(self.host.board.vmcb("vm", 0), batch)[2]


@pytest.fixture(scope="module")
def resting() -> Guest:
    guest = Guest()
    assert guest.guest.state is GuestState.RUNNING
    assert guest.life == Life(rounds=1)
    return guest


def test_an_interrupt_rings_and_its_handler_runs(resting: Guest) -> None:
    irqs = resting.life.irqs
    for more in (1, 2):
        assert resting.interrupt() is True
        resting.on()
        assert (resting.life.irqs, resting.life.hv) == (irqs + more, irqs + more)
        assert resting.page() == bytes(3)


def test_what_waits_already_is_not_overwritten(resting: Guest) -> None:
    assert resting.interrupt() is True
    assert resting.interrupt() is False
    resting.on()


def test_a_guest_that_was_told_is_not_told_again(resting: Guest) -> None:
    board = resting.host.board
    page = spa(resting.host, resting.guest, resting.shared + PAGE_BYTES)
    board.execute_host((op.HostWrite(page, bytes((0, 0x80))),))
    told = resting.life.hv
    assert resting.interrupt() is True
    resting.on()
    assert (resting.life.hv, resting.page()) == (told, bytes((VECTOR, 0x80, 0)))
    board.execute_host((op.HostWrite(page, bytes(2)),))


@pytest.mark.parametrize("vector", [13, 29, 200])
def test_a_vector_that_nobody_handles_is_dropped(resting: Guest, vector: int) -> None:
    irqs = resting.life.irqs
    assert resting.interrupt(vector) is True
    resting.on()
    assert (resting.life.irqs, resting.page(), resting.guest.state) == (irqs, bytes(3), GuestState.RUNNING)


@pytest.mark.parametrize("flags", [0, 1, 2, 0x7C, 0x7F, 0xFF])
def test_whatever_stands_in_the_page_the_guest_goes_on(resting: Guest, flags: int) -> None:
    page = spa(resting.host, resting.guest, resting.shared + PAGE_BYTES)
    rung = op.VmcbStore("vm", 0, "EVENTINJ", exception(28).field)
    irqs = resting.life.irqs
    for vector in (0, 1, 2, 8, 13, 14, 28, 29, 31, 32, 255):
        octets = bytes((vector, flags)) + b"\xff" * 62
        batch = op.HostWrite(page, octets), rung, op.VmKick("vm", 0)
        assert resting.host.board.execute_host(batch) == (None, None, 0)
        resting.on()
        assert (resting.page()[:2], resting.guest.state) == (bytes(2), GuestState.RUNNING)
    assert resting.life.irqs == irqs
    resting.host.board.execute_host((op.HostWrite(page, bytes(64)),))


def test_a_guest_that_masks_interrupts_takes_them_when_it_is_ready() -> None:
    guest = Guest(masked=True)
    assert guest.interrupt() is True
    guest.on()
    # It was woken by #HV, saw that nothing may come, and left the vector where it is.
    assert (guest.life.hv, guest.life.irqs, guest.life.rounds) == (1, 0, 2)
    assert guest.page() == bytes((VECTOR, 0, 0))
    guest.on(2 * SECOND)
    assert (guest.life.irqs, guest.page()) == (1, bytes(3))
    assert guest.guest.state is GuestState.RUNNING


def outcome(back_: bytes) -> tuple[int, int]:
    return tuple(int.from_bytes(back_[at : at + 8], "little") for at in (0x398, 0x3A0))


def test_the_page_is_registered_asked_for_and_let_go(resting: Guest) -> None:
    gpa = resting.shared + PAGE_BYTES
    asked = [
        parse_reply(resting.ask(NaeEvent.HV_DOORBELL_PAGE, *words), ()).info2
        for words in ((0,), (2,), (3,), (2,), (1, gpa), (2,))
    ]
    assert asked == [NOWHERE, gpa, 0, NOWHERE, gpa, gpa]


@pytest.mark.parametrize(
    ("code", "info1", "info2", "reason"),
    [
        (NaeEvent.HV_DOORBELL_PAGE, 4, 0, BadInput.INVALID_INPUT),
        (NaeEvent.HV_DOORBELL_PAGE, 1 << 32 | 1, 0, BadInput.INVALID_INPUT),
        (NaeEvent.HV_DOORBELL_PAGE, 1, PAGE_BYTES + 1, BadInput.INVALID_INPUT),
        (NaeEvent.HV_DOORBELL_PAGE, 1, 1 << 40, BadInput.INVALID_INPUT),
        (NaeEvent.HV_DOORBELL_PAGE, 1, NOWHERE, BadInput.INVALID_INPUT),
        (NaeEvent.HV_IPI, 5, 0, BadInput.INVALID_INPUT),
        (NaeEvent.HV_IPI, 4 << 8 | VECTOR, 0, BadInput.INVALID_INPUT),
        (NaeEvent.HV_TIMER, 0, 0, BadInput.INVALID_EVENT),
    ],
)
def test_a_malformed_exit_is_refused_and_changes_nothing(resting: Guest, code, info1, info2, reason) -> None:
    before = dict(resting.host.hypervisor.launched("vm").doorbells)
    assert outcome(resting.ask(code, info1, info2)) == (2, reason)
    assert resting.host.hypervisor.launched("vm").doorbells == before != {}


@pytest.mark.parametrize(
    ("icr", "comes"), [(VECTOR, 1), (1 << 18 | VECTOR, 1), (3 << 18 | VECTOR, 0), (7 << 32 | VECTOR, 0)]
)
def test_an_ipi_comes_to_those_it_is_for(resting: Guest, icr: int, comes: int) -> None:
    irqs = resting.life.irqs
    assert outcome(resting.ask(NaeEvent.HV_IPI, icr)) == (0, 0)
    resting.on()
    assert resting.life.irqs == irqs + comes


def test_a_page_that_is_private_gets_nothing(resting: Guest) -> None:
    record = resting.host.hypervisor.launched("vm")
    record.doorbells[0] = resting.guest.spec.memory.placement("vm", 0, 11).base_gpa
    assert resting.interrupt() is False
    record.doorbells[0] = resting.shared + PAGE_BYTES


@pytest.mark.parametrize("features", [0, ALT])
def test_a_guest_without_restricted_injection_has_no_doorbell(features: int) -> None:
    guest = Guest(features)
    assert (guest.guest.state, guest.guest.shutdown_code) == (GuestState.STOPPED, 9)
    assert outcome(guest.ask(NaeEvent.HV_DOORBELL_PAGE, 0)) == (2, BadInput.INVALID_EVENT)
    assert outcome(guest.ask(NaeEvent.HV_IPI, VECTOR)) == (2, BadInput.INVALID_EVENT)


# What a launch asks for.


@pytest.mark.parametrize(("product", "feature"), [("Milan", "PMC_VIRTUALIZATION"), ("Genoa", "PMC_VIRTUALIZATION")])
def test_a_feature_that_the_part_lacks_is_no_launch(product: str, feature: str) -> None:
    host = make_host(product=product)
    host.launch(replace(guest_spec("vm", SNP), sev_features=int(SevFeature[feature])), lambda _: None, running=True)
    guest = host.guests["vm"]
    assert (guest.state, guest.reason) == (GuestState.REFUSED, f"sev_features: {product} has no {feature}")
    assert host.hypervisor.figures().memory_bytes == make_host(product=product).hypervisor.figures().memory_bytes


def test_milans_features_are_those_of_its_cpuid() -> None:
    # EAX of CPUID Fn8000_001F of a Milan is 0101FD3F: each optional bit of SEV_FEATURES beside its bit there.
    bits = {REST: 12, ALT: 13, SevFeature.DEBUG_SWAP: 14, SevFeature.PREVENT_HOST_IBS: 15, SevFeature.VMPL_SSS: 7,
            SevFeature.SECURE_TSC: 8, SevFeature.VMGEXIT_PARAMETER: 17, SevFeature.IBS_VIRTUALIZATION: 19,
            SevFeature.VMSA_REGISTER_PROTECTION: 24, SevFeature.SMT_PROTECTION: 25, SevFeature.SECURE_AVIC: 26,
            SevFeature.IBPB_ON_ENTRY: 31}  # fmt: skip
    milan = SEV_FEATURES["Milan"]
    assert {feature for feature in bits if milan & feature} == {
        feature for feature, bit in bits.items() if 0x0101_FD3F >> bit & 1
    }


def test_a_kernel_does_not_run_with_restricted_injection_that_its_hypervisor_does_not_offer() -> None:
    host = make_host()
    host.hypervisor._ghcb._messages = {
        **host.hypervisor._ghcb._messages, msr.FeaturesRequest: lambda *_: _answer(msr.Features(HypervisorFeature.SNP))
    }  # fmt: skip
    host.launch(replace(guest_spec("vm", SNP), sev_features=int(REST)), lambda _: None, running=True)
    run(host, SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | 2)


def _answer(message):
    return message.value
    yield ()
