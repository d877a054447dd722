"""A tenant that begins when a relying party has believed its guest, and a relying party that believes nobody else."""

from dataclasses import replace

import pytest

from cluster.root_keys import product_root
from node.generation import Generation
from node.guest import GuestSpec
from node.laboratory_roots import LABORATORY_ROOTS
from node.mac_address import mac_of
from node.program import ProgramSpec
from psp.certificate_table import CertificateKind, packed
from psp.product_root import RootName
from psp.verifier import root_of
from tests.node.toy_guests import MIB, SECOND, make_host, run
from workloads import attested_start
from workloads.library import PROGRAMS, footprint
from workloads.release_messages import Kind, Message, parse, pieces
from workloads.relying_party import disk_key

INNER = ProgramSpec("key-value-store", (("records", 64),))


def start(host, name, spec, generation, vcpus=1, **options):
    wanted = GuestSpec(name, generation, vcpus, 128 * MIB, spec, 11, network=True, **options)
    host.launch(wanted, lambda _: None, running=True)
    return host.guests[name]


def certified(host, *kept_back):
    """Certificates of the host's chip, as its owner would fetch them."""
    psp = host.board.psp
    chip, tcb = psp.legacy.keys.chip, psp.firmware.reported_tcb
    root = product_root(chip.line.name)
    fetched = {
        CertificateKind.VCEK: root.vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb),
        CertificateKind.ASK: root.certificate(RootName.ASK),
        CertificateKind.ARK: root.certificate(RootName.ARK), CertificateKind.CRL: root.revocation_list(),
    }  # fmt: skip
    table = packed({kind: data for kind, data in fetched.items() if kind not in kept_back})
    host.board.certificates = lambda: table
    return host


@pytest.fixture(scope="module")
def host_with_certificates():
    return lambda: certified(make_host(PROGRAMS))


def meet(host, generation=Generation.SEV_SNP, vcpus=1, inner=INNER, party=(), **options):
    party = start(host, "party", ProgramSpec("relying-party", tuple(sorted(party))), Generation.PLAIN)
    guest = start(host, "guest", attested_start.wrapped("party", inner), generation, vcpus, **options)
    return party, guest


def work(guest):
    return sum(vcpu.registers.r13 for vcpu in guest.vcpus)


def key_of(host, party, name="guest"):
    """What the guest has in its private memory, and what the relying party meant for it."""
    guest = host.guests[name]
    program = guest.software.programs[0]
    spa = host.hypervisor.launched(name).page_spa(program.key_gpa)
    asid = host.hypervisor.launched(name).asid
    return host.board.controller.read(spa, 32, asid), disk_key(party.software.programs[0].content, mac_of(name, 0))


def test_a_believed_guest_gets_its_disk_key_and_begins(host_with_certificates):
    host = host_with_certificates()
    party, guest = meet(host)
    run(host, 2 * SECOND)
    held, meant = key_of(host, party)
    assert held == meant
    assert work(party) == 1
    assert guest.state == "running"
    assert work(guest) > 0


def test_each_vcpu_asks_for_itself_and_works(host_with_certificates):
    host = host_with_certificates()
    party, guest = meet(host, vcpus=2)
    run(host, 3 * SECOND)
    assert work(party) == 2
    assert all(vcpu.registers.r13 > 0 for vcpu in guest.vcpus)


@pytest.mark.parametrize(
    "parameters",
    [
        (("measurement", "00" * 48),), (("min_tcb", "snp=255"),), (("vmpl", 2),), (("starts_at", 1),),
        (("roots", "Milan=" + "00" * 32),),
    ],
    ids=lambda parameters: parameters[0][0],
)  # fmt: skip
def test_a_guest_that_is_not_believed_never_begins(host_with_certificates, parameters):
    host = host_with_certificates()
    party, guest = meet(host, party=parameters)
    run(host, 2 * SECOND)
    host.close(2 * SECOND)
    assert (guest.state, guest.shutdown_code, work(guest)) == ("stopped", 6, 0)
    assert work(party) == 0


@pytest.mark.parametrize("demanded", [1, 0])
def test_a_host_that_keeps_the_revocation_list_to_itself_gets_its_guest_no_key(demanded):
    host = certified(make_host(PROGRAMS), CertificateKind.CRL)
    party, guest = meet(host, party=(("crl_demanded", demanded),))
    run(host, 2 * SECOND)
    host.close(2 * SECOND)
    assert (work(party), work(guest) > 0) == (1 - demanded, not demanded)


def test_a_guest_without_reports_begins_at_once(host_with_certificates):
    host = host_with_certificates()
    party, guest = meet(host, Generation.PLAIN)
    run(host, SECOND)
    assert work(party) == 0
    assert work(guest) > 0


def test_a_host_that_gets_its_certificates_late_delays_its_guest(host_with_certificates):
    host = host_with_certificates()
    table = host.board.certificates
    host.board.certificates = bytes
    party, guest = meet(host)
    run(host, SECOND)
    assert work(guest) == 0
    host.board.certificates = table
    run(host, 3 * SECOND)
    assert (work(party), work(guest) > 0) == (1, True)


def test_the_program_proper_may_use_the_network_itself(host_with_certificates):
    host = host_with_certificates()
    server = ProgramSpec("key-value-server", (("instructions_per_request", 1000), ("records", 64), ("value_bytes", 64)))
    start(host, "store", server, Generation.PLAIN)
    client = ProgramSpec("key-value-client", (
        ("batches", 5), ("instructions_per_batch", 1000), ("records", 24), ("server", "store"), ("value_bytes", 64),
    ))  # fmt: skip
    _, guest = meet(host, inner=client)
    run(host, 5 * SECOND)
    host.close(5 * SECOND)
    assert (guest.state, guest.shutdown_code) == ("stopped", 0)


def tapped(host, change, seconds=20, **options):
    """The meeting with somebody in between; what went over the network."""
    deliver, seen = host.network._deliver, []

    def tap(target, frames, sent_ns):
        seen.extend(frames)
        deliver(target, tuple(changed for frame in frames for changed in change(frame)), sent_ns)

    host.network._deliver = tap
    party, guest = meet(host, **options)
    run(host, seconds * SECOND)
    return party, guest, seen


def test_what_goes_over_the_network_does_not_tell_the_key(host_with_certificates):
    host = host_with_certificates()
    party, _, seen = tapped(host, lambda frame: (frame,), 2)
    held, _ = key_of(host, party)
    assert {parse(frame).kind for frame in seen} == {Kind.HELLO, Kind.NONCE, Kind.PIECE, Kind.KEY}
    assert all(held not in frame for frame in seen)


def test_lost_and_doubled_frames_cost_time_alone(host_with_certificates):
    count = []

    def lose(frame):
        count.append(frame)
        return () if len(count) % 4 == 0 else (frame, frame)

    party, guest, _ = tapped(host_with_certificates(), lose, 60)
    assert (work(party), work(guest) > 0) == (1, True)


@pytest.mark.parametrize("kind", [Kind.NONCE, Kind.PIECE, Kind.KEY])
def test_a_changed_message_gives_nobody_a_key(host_with_certificates, kind):
    def change(frame):
        message = parse(frame)
        if message is None or message.kind is not kind or message.offset:
            return (frame,)
        return (frame[:-1] + bytes([frame[-1] ^ 1]),)

    party, guest, _ = tapped(host_with_certificates(), change, 4)
    assert work(guest) == 0
    # The answer alone may be changed on its way from somebody who believed the guest.
    assert work(party) == (1 if kind is Kind.KEY else 0)


def test_an_old_answer_is_worth_nothing(host_with_certificates):
    """Somebody keeps what a guest showed, and shows it again under its own name once the guest has its key."""
    host = host_with_certificates()
    party, _, seen = tapped(host, lambda frame: (frame,), 2)
    shown = [frame for frame in seen if parse(frame).kind is Kind.PIECE]
    own, theirs = mac_of("guest", 0), mac_of("party", 0)
    hello = Message(theirs, own, 9, Kind.HELLO)
    again = [Message(theirs, own, 9, Kind.PIECE, one.data, one.offset, one.total) for one in map(parse, shown)]
    host.network._deliver(theirs, (hello.pack(),), host.now_ns)
    run(host, 3 * SECOND)
    for one in again:
        host.network._deliver(theirs, (one.pack(),), host.now_ns)
        run(host, host.now_ns + SECOND // 10)
    assert work(party) == 1
    assert party.vcpus[0].registers.rbx == 1  # refused


def test_pieces_of_another_exchange_do_not_count(host_with_certificates):
    """The number that a piece carries is the hello's that it belongs to; any other gets no answer and no judgement."""
    host = host_with_certificates()
    party, _, seen = tapped(host, lambda frame: (frame,), 2)
    shown = [parse(frame) for frame in seen if parse(frame).kind is Kind.PIECE]
    own, theirs = mac_of("guest", 0), mac_of("party", 0)
    host.network._deliver(theirs, (Message(theirs, own, 9, Kind.HELLO).pack(),), host.now_ns)
    run(host, host.now_ns + SECOND)
    judged = party.vcpus[0].registers.rcx
    for number in (8, 10, 0):
        for one in shown:
            piece = Message(theirs, own, number, Kind.PIECE, one.data, one.offset, one.total)
            host.network._deliver(theirs, (piece.pack(),), host.now_ns)
            run(host, host.now_ns + SECOND // 10)
    assert party.vcpus[0].registers.rcx == judged
    for one in shown:
        host.network._deliver(theirs, (replace(one, to=theirs, sender=own, number=9).pack(),), host.now_ns)
        run(host, host.now_ns + SECOND // 10)
    assert party.vcpus[0].registers.rcx == judged + 1, "those of its own do"


def test_the_roots_named_are_those_of_laboratory_0():
    found = {line: root_of(product_root(line).certificate(RootName.ARK))[line] for line in LABORATORY_ROOTS}
    assert found == LABORATORY_ROOTS


def test_it_needs_more_memory_than_the_program_proper():
    plain, more = footprint(INNER), footprint(attested_start.wrapped("party", INNER))
    assert more.private_bytes == plain.private_bytes + attested_start.PRIVATE_BYTES
    assert more.shared_bytes == plain.shared_bytes + attested_start.SHARED_BYTES


def test_messages_are_read_as_they_were_written():
    first = Message(b"\2" * 6, b"\4" * 6, 7, Kind.PIECE)
    evidence = bytes(range(256)) * 12
    parts = [parse(frame) for frame in pieces(first, evidence)]
    assert b"".join(part.data for part in parts) == evidence
    for frame in pieces(first, evidence):
        assert parse(frame[:-1]) is None
        assert parse(frame + b"\0") is None
    assert parse(b"") is None
