"""A launch with an owner: the firmware decides what its answers are worth, and a host loses nothing by bad ones."""

import pytest

from node.generation import Generation
from node.guest import GuestSpec
from node.owned_launch import LAUNCH_SECRET_GPA
from node.program import ProgramSpec
from psp.secret_packet import PacketHeader
from psp.sev_certificate import SevCertificate
from psp.sev_session import Session
from tests.node.toy_guests import MIB, make_host
from workloads.library import PROGRAMS

SESSION_BYTES = SevCertificate.SIZE + Session.SIZE + 4
SPEC = ProgramSpec("stream")


def launch(host, name="vm", generation=Generation.SEV, owned=True):
    host.launch(GuestSpec(name, generation, 1, 64 * MIB, SPEC, 11, owned=owned), lambda _: None, running=True)
    return host.guests[name]


@pytest.fixture(scope="module")
def hosts():
    return {generation: make_host(PROGRAMS) for generation in (Generation.SEV, Generation.SEV_ES)}


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_ES])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "owner of vm: no session"),
        (b"", "owner of vm: a session of 0 bytes"),
        (bytes(SESSION_BYTES - 1), f"owner of vm: a session of {SESSION_BYTES - 1} bytes"),
        (bytes(1 << 20), f"owner of vm: a session of {1 << 20} bytes"),
        (bytes(SESSION_BYTES), "LAUNCH_START: INVALID_CERTIFICATE"),
    ],
    ids=["none", "empty", "short", "long", "zeros"],
)
def test_a_bad_session_refuses_the_launch_and_gives_everything_back(hosts, generation, answer, reason):
    host = hosts[generation]
    host.board.launch_owner = lambda *_: answer
    before = host.hypervisor.figures().memory_bytes
    guest = launch(host, generation=generation)
    assert (guest.state, guest.reason) == ("refused", reason)
    assert host.hypervisor.figures().memory_bytes == before


def test_a_packet_that_is_not_for_this_guest_is_refused(hosts):
    from cluster.launch_owner import launch_owners

    host = hosts[Generation.SEV]
    honest = launch_owners(
        lambda vm: host.guests[vm].spec, host.images, host.spec.product.firmware_api,
        lambda: host.board.psp.legacy.keys.chip, 0,
    )  # fmt: skip
    spec = ProgramSpec("attested-start", (("relying_party", "party"), ("workload", "stream")))

    def tried(change):
        def answer(vm, shown):
            said = honest(vm, shown)
            return change(said) if len(shown) == 48 else said

        host.board.launch_owner = answer
        host.launch(GuestSpec("vm", Generation.SEV, 1, 64 * MIB, spec, 11, owned=True), lambda _: None, running=True)
        return host.guests["vm"]

    before = host.hypervisor.figures().memory_bytes
    flipped = tried(lambda said: said[:-1] + bytes([said[-1] ^ 1]))
    assert (flipped.state, flipped.reason) == ("refused", "LAUNCH_SECRET: BAD_MEASUREMENT")
    for length in (0, PacketHeader.SIZE, 1 << 20):
        wrong = tried(lambda said, length=length: said[:length].ljust(length, b"\0"))
        assert (wrong.state, wrong.reason) == ("refused", f"owner of vm: a packet of {length} bytes")
    assert host.hypervisor.figures().memory_bytes == before
    good = tried(lambda said: said)
    assert good.state == "running"
    record = host.hypervisor.launched("vm")
    spa = record.spa_of(LAUNCH_SECRET_GPA)
    assert any(host.board.controller.read(spa, 32, record.asid))
    host.destroy("vm")


def test_launches_without_an_owner_ask_nobody(hosts):
    host = hosts[Generation.SEV]
    host.board.launch_owner = lambda *_: pytest.fail("nobody owns it")
    assert launch(host, "other", owned=False).state == "running"
    assert launch(host, "plain", Generation.PLAIN).state == "running"
