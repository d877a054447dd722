"""SEND_* and RECEIVE_*: a guest goes from one platform to another, under its policy, and only whole."""

import dataclasses
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from owner import AMD_CHAIN, TARGET_CHAIN, TARGET_PDH, exported, lay_chain
from toy_machine import COMMAND_PAGE, GUEST_PAGE, OUT, PAGE, Machine, ToyBus, returning, sev_guest, up

from cluster.root_keys import product_root
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.firmware import SecurityProcessor
from psp.legacy_guest import LegacyGuestState
from psp.product_line import PRODUCT_LINES
from psp.product_root import laboratory_root
from psp.secret_packet import PacketHeader
from psp.sev_certificate import KeyUsage, SevCertificate, parse
from psp.sev_session import Session
from psp.status import Status

NOSEND, DOMAIN, SEV, ES = 8, 16, 32, 4
SECRET = b"what the guest has in memory".ljust(256, b".")
HEADER, TRANSPORT, SESSION = OUT, OUT + PAGE, OUT + 8 * PAGE
TMR = 0x80_0000


@pytest.fixture
def source():
    return up(snp=False, line="Naples")


@pytest.fixture
def target():
    def octets(purpose: str, counter: int, length: int) -> bytes:
        return hashlib.shake_128(f"target {purpose} {counter}".encode()).digest(length)

    bus = ToyBus()
    machine = Machine(bus, SecurityProcessor(bus, octets, line=NAPLES.line))
    init = buffers.Init(buffers.INIT_ES, TMR, 1 << 20)
    assert machine.call(LegacyCommand.INIT, init.pack()) == 0
    machine.flush(LegacyCommand.DF_FLUSH)
    return machine


def certified(exports):
    """A chain as a host hands it over: the CEK as the key distribution service has it."""
    pdh, chain = exports
    cek = NAPLES.certified_cek(parse(chain[2 * 0x824 :], KeyUsage.CEK))
    return pdh, chain[: 2 * 0x824] + cek.pack()


NAPLES = laboratory_root(PRODUCT_LINES["Naples"])
AMD = b"".join(NAPLES.amd_certificate(usage).pack() for usage in (KeyUsage.ASK, KeyUsage.ARK))


def running(machine, policy=SEV, contents=SECRET):
    handle = sev_guest(machine, LegacyGuestState.RUNNING)
    machine.psp.legacy.guests[handle].policy = policy
    machine.bus.write_guest(GUEST_PAGE, contents, 6)
    return handle


def start_buffer(handle):
    return buffers.SendStart(
        handle, 0, TARGET_PDH, 0x824, TARGET_CHAIN, 3 * 0x824, AMD_CHAIN, len(AMD), SESSION, 0x80
    )


def send_start(machine, handle, exports, amd=AMD, **changes):
    lay_chain(machine, exports, amd)
    return returning(machine, LegacyCommand.SEND_START, dataclasses.replace(start_buffer(handle), **changes).pack())


def sending(machine, target, policy=SEV):
    """A guest in SUPDATE, bound for the target."""
    handle = running(machine, policy)
    assert send_start(machine, handle, certified(exported(target)))[0] == 0
    return handle


def send(machine, handle, length=256, command=LegacyCommand.SEND_UPDATE_DATA):
    update = buffers.SendUpdate(handle, HEADER, 0x34, GUEST_PAGE, length, TRANSPORT, length)
    status, _ = returning(machine, command, update.pack())
    assert status == 0
    return PacketHeader.parse(machine.bus.read(HEADER, 0x34)), machine.bus.read(TRANSPORT, length)


def receive_start(source, target, policy=SEV):
    """The target's guest in RUPDATE, active; its handle."""
    target.bus.write(TARGET_PDH, exported(source)[0])
    target.bus.write(SESSION, source.bus.read(SESSION, 0x80))
    start = buffers.LaunchStart(0, policy, TARGET_PDH, 0x824, SESSION, 0x80)
    status, answer = returning(target, LegacyCommand.RECEIVE_START, start.pack())
    if status:
        return status, 0
    handle = buffers.LaunchStart.parse(answer).handle
    asid = 2 if policy & ES else 7
    assert target.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack()) == 0
    return status, handle


def receive(target, handle, header, packet, gpa=GUEST_PAGE, command=LegacyCommand.RECEIVE_UPDATE_DATA):
    target.bus.write(HEADER, header.pack())
    target.bus.write(TRANSPORT, packet)
    update = buffers.SendUpdate(handle, HEADER, 0x34, gpa, len(packet), TRANSPORT, len(packet))
    return target.call(command, update.pack())


def finish(machine, command, handle):
    return machine.call(command, buffers.Handle(handle).pack())


def test_a_guest_s_memory_arrives_under_another_key_and_the_source_is_done_with(source, target):
    handle = sending(source, target)
    header, packet = send(source, handle)
    assert SECRET[:16] not in packet
    status, there = receive_start(source, target)
    assert status == 0
    assert receive(target, there, header, packet) == 0
    assert target.bus.read_guest(GUEST_PAGE, len(SECRET), 7) == SECRET
    assert target.bus.keys[7] != source.bus.keys[6]
    assert finish(source, LegacyCommand.SEND_FINISH, handle) == 0
    assert finish(target, LegacyCommand.RECEIVE_FINISH, there) == 0
    assert source.psp.legacy.guests[handle].state is LegacyGuestState.SENT
    assert target.psp.legacy.guests[there].state is LegacyGuestState.RUNNING
    # What was sent cannot be sent again, and goes by DEACTIVATE and DECOMMISSION.
    assert send_start(source, handle, certified(exported(target)))[0] == Status.INVALID_GUEST_STATE
    assert finish(source, LegacyCommand.DEACTIVATE, handle) == 0
    assert finish(source, LegacyCommand.DECOMMISSION, handle) == 0


def test_session_and_packet_are_what_the_sheet_says(source, target):
    """Derived here once more with nothing but HMAC and AES: SP 800-108, CTR, and the MAC's order of fields."""

    def kdf(key, label, context=b"", length=16):
        said = (1).to_bytes(4, "little") + label + b"\0" + context + (8 * length).to_bytes(4, "little")
        return hmac.digest(key, said, "sha256")[:length]

    def ctr(key, iv, data):
        return Cipher(algorithms.AES(key), modes.CTR(iv)).decryptor().update(data)

    handle = sending(source, target, SEV | 1)
    header, packet = send(source, handle)
    session = source.bus.read(SESSION, 0x80)
    pdh = parse(exported(source)[0], KeyUsage.PDH)
    point = int.from_bytes(pdh.public_key[4:52], "little"), int.from_bytes(pdh.public_key[76:124], "little")
    theirs = ec.EllipticCurvePublicNumbers(*point, ec.SECP384R1()).public_key()
    z = target.psp.legacy.keys.pdh_key.exchange(ec.ECDH(), theirs)
    master = kdf(z, b"sev-master-secret", session[:0x10])
    kek, kik = kdf(master, b"sev-kek"), kdf(master, b"sev-kik")
    assert hmac.digest(kik, session[0x10:0x30], "sha256") == session[0x40:0x60]
    unwrapped = ctr(kek, session[0x30:0x40], session[0x10:0x30])
    tek, tik = unwrapped[:16], unwrapped[16:]
    assert hmac.digest(tik, (SEV | 1).to_bytes(4, "little"), "sha256") == session[0x60:]
    assert ctr(tek, header.iv, packet) == SECRET
    sizes = len(SECRET).to_bytes(4, "little") * 2
    assert hmac.digest(tik, b"\x02" + bytes(4) + header.iv + sizes + packet, "sha256") == header.mac


def test_a_cancelled_guest_stays_and_its_transport_keys_are_gone(source, target):
    handle = sending(source, target)
    old = source.psp.legacy.guests[handle].transport
    assert finish(source, LegacyCommand.SEND_CANCEL, handle) == 0
    guest = source.psp.legacy.guests[handle]
    assert guest.state is LegacyGuestState.RUNNING
    assert guest.transport != old
    assert send_start(source, handle, certified(exported(target)))[0] == 0
    assert source.psp.legacy.guests[handle].transport not in (old, guest)


def test_each_packet_has_its_own_iv(source, target):
    handle = sending(source, target)
    (one, first), (another, second) = send(source, handle), send(source, handle)
    assert one.iv != another.iv
    assert first != second


def refused(machine, command, buffer):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (NOSEND, Status.POLICY_FAILURE),
        (SEV | DOMAIN, Status.POLICY_FAILURE),  # two platforms that own themselves have two owners
        (SEV | 1 << 16 | 56 << 24, Status.POLICY_FAILURE),
        (SEV | 2 << 16, Status.POLICY_FAILURE),
        (SEV | 1 << 16 | 55 << 24, Status.SUCCESS),
        (0, Status.SUCCESS),
    ],
)
def test_a_policy_says_where_its_guest_may_go(source, target, policy, status):
    handle = running(source, policy)
    lay_chain(source, certified(exported(target)), AMD)
    if status:
        assert refused(source, LegacyCommand.SEND_START, start_buffer(handle)) == status
    else:
        assert send_start(source, handle, certified(exported(target)))[0] == 0


def test_a_guest_of_a_domain_goes_where_its_own_owner_is(source):
    handle = running(source, SEV | DOMAIN)
    assert send_start(source, handle, certified(exported(source)))[0] == 0


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


CHANGES = {
    "PDH key": lambda pdh, chain, amd: (flipped(pdh, 0x20), chain, amd),
    "PDH signature": lambda pdh, chain, amd: (flipped(pdh, 0x41C), chain, amd),
    "PEK key": lambda pdh, chain, amd: (pdh, flipped(chain, 0x20), amd),
    "OCA signature": lambda pdh, chain, amd: (pdh, flipped(chain, 0x824 + 0x41C), amd),
    "CEK key": lambda pdh, chain, amd: (pdh, flipped(chain, 2 * 0x824 + 0x20), amd),
    "CEK without AMD's signature": lambda pdh, chain, amd: (
        pdh, chain[: 2 * 0x824] + dataclasses.replace(
            SevCertificate.parse(chain[2 * 0x824 :]), first_usage=0x1000, first_signature=bytes(512)
        ).pack(), amd,
    ),
    "order of the chain": lambda pdh, chain, amd: (pdh, chain[0x824:] + chain[:0x824], amd),
    "ASK": lambda pdh, chain, amd: (pdh, chain, flipped(amd, 0x150)),
    "another root": lambda pdh, chain, amd: (pdh, chain, flipped(amd, len(amd) // 2 + 4)),
    "ARK before ASK": lambda pdh, chain, amd: (pdh, chain, amd[len(amd) // 2 :] + amd[: len(amd) // 2]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_chain_that_does_not_hold_is_no_target(source, target, change):
    handle = running(source)
    pdh, chain, amd = CHANGES[change](*certified(exported(target)), AMD)
    lay_chain(source, (pdh, chain), amd)
    assert refused(source, LegacyCommand.SEND_START, start_buffer(handle)) == Status.INVALID_CERTIFICATE


OTHERS = {
    # Whose chip, whose ASK signed its CEK, whose certificates are shown; whether it will do where Rome's root is taken.
    "a Rome with all that is its own": ("Rome", "Rome", "Rome", True),
    "a Rome with the certificates of Naples": ("Rome", "Rome", "Naples", False),
    "a Rome that the key of Naples signed for": ("Rome", "Naples", "Rome", False),
    "a Naples that the key of Rome signed for": ("Naples", "Rome", "Naples", False),
    "a Naples with the certificates of Rome": ("Naples", "Naples", "Rome", False),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("takes_rome", [False, True])
def test_a_platform_of_another_line_is_a_target_where_its_root_is_taken_and_its_chain_holds(source, case, takes_rome):
    chip, signer, shown, holds = OTHERS[case]
    roots = {"Naples": NAPLES, "Rome": product_root("Rome")}
    usages = KeyUsage.ASK, KeyUsage.ARK
    amd = {name: [root.amd_certificate(usage) for usage in usages] for name, root in roots.items()}
    source.psp.legacy.migration.other_arks = (amd["Rome"][1],) if takes_rome else ()
    pdh, chain = exported(up(snp=False, line=chip))
    cek = roots[signer].certified_cek(parse(chain[2 * 0x824 :], KeyUsage.CEK))
    octets = b"".join(one.pack() for one in amd[shown])
    lay_chain(source, (pdh, chain[: 2 * 0x824] + cek.pack()), octets)
    start = dataclasses.replace(start_buffer(running(source)), amd_length=len(octets))
    if takes_rome and holds:
        assert returning(source, LegacyCommand.SEND_START, start.pack())[0] == Status.SUCCESS
    else:
        assert refused(source, LegacyCommand.SEND_START, start) == Status.INVALID_CERTIFICATE


def test_who_does_not_ask_for_sev_platforms_goes_to_any(source):
    handle = running(source, policy=0)
    status, _ = send_start(source, handle, exported(up(snp=False, line="Rome")), b"", amd_length=0)
    assert status == Status.SUCCESS


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"pdh_length": 0x823}, Status.INVALID_LENGTH),
        ({"chain_length": 2 * 0x824}, Status.INVALID_LENGTH),
        ({"amd_length": len(AMD) - 1}, Status.INVALID_LENGTH),
        ({"pdh_address": 1 << 60}, Status.INVALID_ADDRESS),
        ({"chain_address": (1 << 24) - 8}, Status.INVALID_ADDRESS),
        ({"amd_address": 1 << 24}, Status.INVALID_ADDRESS),
        ({"session_address": (1 << 24) - 8}, Status.INVALID_ADDRESS),
        ({"handle": 9}, Status.INVALID_GUEST),
    ],
)
def test_bad_fields_of_send_start_are_refused(source, target, changes, status):
    handle = running(source)
    lay_chain(source, certified(exported(target)), AMD)
    wrong = dataclasses.replace(start_buffer(handle), **changes)
    assert refused(source, LegacyCommand.SEND_START, wrong) == status


def test_short_buffers_are_told_what_is_needed(source, target):
    handle = running(source)
    lay_chain(source, certified(exported(target)), AMD)
    asked = dataclasses.replace(start_buffer(handle), session_length=0)
    status, answer = returning(source, LegacyCommand.SEND_START, asked.pack())
    assert (status, buffers.SendStart.parse(answer).session_length) == (Status.INVALID_LENGTH, 0x80)
    assert send_start(source, handle, certified(exported(target)))[0] == 0
    asked = buffers.SendUpdate(handle, HEADER, 0, GUEST_PAGE, 64, TRANSPORT, 0)
    status, answer = returning(source, LegacyCommand.SEND_UPDATE_DATA, asked.pack())
    told = buffers.SendUpdate.parse(answer)
    assert (status, told.header_length, told.transport_length) == (Status.INVALID_LENGTH, 0x34, 64)


UPDATES = [
    ({"guest_length": 0, "transport_length": 0}, Status.INVALID_LENGTH),
    ({"guest_length": 15, "transport_length": 15}, Status.INVALID_LENGTH),
    ({"guest_length": (16 << 10) + 16, "transport_length": (16 << 10) + 16}, Status.INVALID_LENGTH),
    ({"guest_address": GUEST_PAGE + 8}, Status.INVALID_ADDRESS),
    ({"guest_address": 1 << 60}, Status.INVALID_ADDRESS),
    ({"header_address": 1 << 60}, Status.INVALID_ADDRESS),
    ({"transport_address": (1 << 24) - 16}, Status.INVALID_ADDRESS),
    ({"handle": 9}, Status.INVALID_GUEST),
]


@pytest.mark.parametrize(("changes", "status"), UPDATES)
def test_bad_fields_of_updates_are_refused(source, target, changes, status):
    handle = sending(source, target)
    update = buffers.SendUpdate(handle, HEADER, 0x34, GUEST_PAGE, 256, TRANSPORT, 256)
    wrong = dataclasses.replace(update, **changes)
    assert refused(source, LegacyCommand.SEND_UPDATE_DATA, wrong) == status
    _, there = receive_start(source, target)
    wrong = dataclasses.replace(update, **{"handle": there, **changes})
    assert refused(target, LegacyCommand.RECEIVE_UPDATE_DATA, wrong) == status


def test_neither_way_goes_without_the_guest_s_key(source, target):
    handle = sending(source, target)
    header, packet = send(source, handle)
    _, there = receive_start(source, target)
    for machine, one, command in (
        (source, handle, LegacyCommand.SEND_UPDATE_DATA), (target, there, LegacyCommand.RECEIVE_UPDATE_DATA)
    ):  # fmt: skip
        assert finish(machine, LegacyCommand.DEACTIVATE, one) == 0
        machine.bus.write(HEADER, header.pack() + bytes(PAGE - 0x34) + packet)
        update = buffers.SendUpdate(one, HEADER, 0x34, GUEST_PAGE, 256, TRANSPORT, 256)
        assert refused(machine, command, update) == Status.INACTIVE


@pytest.mark.parametrize("at", ["flags", "iv", "mac", "packet", "truncated"])
def test_a_tampered_packet_is_not_taken(source, target, at):
    handle = sending(source, target)
    header, packet = send(source, handle)
    _, there = receive_start(source, target)
    changed = {
        "flags": (dataclasses.replace(header, flags=2), packet),
        "iv": (dataclasses.replace(header, iv=flipped(header.iv, 3)), packet),
        "mac": (dataclasses.replace(header, mac=flipped(header.mac, 31)), packet),
        "packet": (header, flipped(packet, 200)),
        "truncated": (header, packet[:-16]),
    }[at]
    before = target.bus.read(GUEST_PAGE, len(SECRET))
    assert receive(target, there, *changed) == (Status.INVALID_PARAM if at == "flags" else Status.BAD_MEASUREMENT)
    assert target.bus.read(GUEST_PAGE, len(SECRET)) == before
    assert receive(target, there, dataclasses.replace(header, flags=1), packet) == Status.UNSUPPORTED


def test_sev_keeps_no_order_packets_may_be_repeated_and_placed_elsewhere(source, target):
    handle = sending(source, target)
    header, packet = send(source, handle)
    _, there = receive_start(source, target)
    for spa in (GUEST_PAGE, GUEST_PAGE + PAGE, GUEST_PAGE):
        assert receive(target, there, header, packet, spa) == 0
        assert target.bus.read_guest(spa, len(SECRET), 7) == SECRET


def test_a_packet_of_one_session_is_nothing_to_another(source, target):
    handle = sending(source, target)
    header, packet = send(source, handle)
    assert finish(source, LegacyCommand.SEND_CANCEL, handle) == 0
    assert send_start(source, handle, certified(exported(target)))[0] == 0
    _, there = receive_start(source, target)
    assert receive(target, there, header, packet) == Status.BAD_MEASUREMENT


def test_another_policy_or_another_target_opens_no_session(source, target):
    sending(source, target)
    assert receive_start(source, target, SEV | 1) == (Status.BAD_MEASUREMENT, 0)
    assert receive_start(source, source) == (Status.BAD_MEASUREMENT, 0)
    assert not target.psp.legacy.guests


def test_a_session_block_in_which_any_field_was_changed_opens_nothing(source, target):
    sending(source, target)
    block = source.bus.read(SESSION, Session.SIZE)
    for at in range(0, Session.SIZE, 8):
        source.bus.write(SESSION, flipped(block, at))
        assert receive_start(source, target) == (Status.BAD_MEASUREMENT, 0), hex(at)
    source.bus.write(SESSION, block)
    assert not target.psp.legacy.guests
    assert receive_start(source, target)[0] == 0


def test_receive_start_wants_the_source_s_certificate(target):
    start = buffers.LaunchStart(0, SEV, 0, 0x824, SESSION, 0x80)
    assert refused(target, LegacyCommand.RECEIVE_START, start) == Status.INVALID_ADDRESS


def test_save_areas_of_es_guests_go_with_their_integrity_values(source, target):
    handle = sending(source, target, SEV | ES)
    area = b"registers".ljust(PAGE, b"=")
    source.bus.write_guest(GUEST_PAGE, area, 6)
    update = buffers.SendUpdate(handle, HEADER, 0x34, GUEST_PAGE, PAGE, TRANSPORT, PAGE)
    # One that hardware did not write as it lies there would come out with a value that fits.
    assert refused(source, LegacyCommand.SEND_UPDATE_VMSA, update) == Status.BAD_MEASUREMENT
    source.bus.seal_save_area(GUEST_PAGE, 6)
    header, packet = send(source, handle, PAGE, LegacyCommand.SEND_UPDATE_VMSA)
    status, there = receive_start(source, target, SEV | ES)
    assert status == 0
    # A packet of memory is no save area.
    assert receive(target, there, header, packet) == Status.BAD_MEASUREMENT
    assert target.bus.sealed == {}
    assert receive(target, there, header, packet, command=LegacyCommand.RECEIVE_UPDATE_VMSA) == 0
    assert target.bus.sealed == {GUEST_PAGE: area}


def test_a_guest_without_es_has_no_save_area_to_send(source, target):
    handle = sending(source, target)
    update = buffers.SendUpdate(handle, HEADER, 0x34, GUEST_PAGE, PAGE, TRANSPORT, PAGE)
    assert refused(source, LegacyCommand.SEND_UPDATE_VMSA, update) == Status.POLICY_FAILURE
    source.psp.legacy.guests[handle].policy |= ES
    short = dataclasses.replace(update, guest_length=64)
    assert refused(source, LegacyCommand.SEND_UPDATE_VMSA, short) == Status.INVALID_LENGTH
    within = dataclasses.replace(update, guest_address=GUEST_PAGE + 16)
    assert refused(source, LegacyCommand.SEND_UPDATE_VMSA, within) == Status.INVALID_ADDRESS


# COPY.


def test_copy_moves_what_the_guest_has_to_another_address(source):
    handle = running(source)
    copy = buffers.Copy(handle, 256, GUEST_PAGE, OUT)
    assert source.call(LegacyCommand.COPY, copy.pack()) == 0
    assert source.bus.read_guest(OUT, 256, 6) == SECRET


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"length": 0}, Status.INVALID_LENGTH),
        ({"length": 24}, Status.INVALID_LENGTH),
        ({"source": GUEST_PAGE + 1}, Status.INVALID_ADDRESS),
        ({"destination": OUT + 8}, Status.INVALID_ADDRESS),
        ({"destination": GUEST_PAGE + 240}, Status.INVALID_ADDRESS),
        ({"destination": 1 << 60}, Status.INVALID_ADDRESS),
        ({"source": 1 << 60}, Status.INVALID_ADDRESS),
        ({"length": 0xFFFF_FFF0}, Status.INVALID_ADDRESS),
    ],
)
def test_bad_fields_of_copy_are_refused(source, changes, status):
    copy = dataclasses.replace(buffers.Copy(running(source), 256, GUEST_PAGE, OUT), **changes)
    assert refused(source, LegacyCommand.COPY, copy) == status
