"""A guest's whole context lies in its Context page, encrypted without integrity, and is read back at each command."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    change_context,
    context,
    new_machine,
    pre_guest,
    snp_guest,
    up,
    update,
)

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import (
    BLOCK_BYTES,
    HOST_CHOSEN,
    MEASUREMENT_BYTES,
    MEASUREMENT_OFFSET,
    POLICY_OFFSET,
    SECRETS,
    GuestContext,
    SnpGuestState,
)
from psp.launch_digest import LaunchDigest, PageType
from psp.policy import SnpPolicy
from psp.status import Status

OTHER = GCTX + PAGE
BLOCKS = range(0, PAGE, BLOCK_BYTES)


def key_of(machine) -> bytes:
    """What this boot's firmware drew."""
    return machine.psp._octets("context key", 0, 32)


def independently_decrypted(machine, spa=GCTX) -> bytes:
    """XTS from its definition: two AES keys, and a tweak that doubles from block to block."""
    key, raw = key_of(machine), machine.bus.read(spa, PAGE)
    data, tweaking = (Cipher(algorithms.AES(half), modes.ECB()) for half in (key[:16], key[16:]))
    tweak = int.from_bytes(tweaking.encryptor().update((spa // PAGE).to_bytes(16, "little")), "little")
    out = b""
    for at in BLOCKS:
        mask = tweak.to_bytes(16, "little")
        inner = bytes(a ^ b for a, b in zip(raw[at : at + 16], mask, strict=True))
        out += bytes(a ^ b for a, b in zip(data.decryptor().update(inner), mask, strict=True))
        tweak = tweak << 1 if tweak < 1 << 127 else (tweak << 1) - (1 << 128) ^ 0x87
    return out


def status_of(machine, gctx=GCTX):
    """(Status, page) of SNP_GUEST_STATUS."""
    machine.bus.rmp_set(OUT, FIRMWARE)
    status = machine.call(SnpCommand.GUEST_STATUS, buffers.SnpGuestStatus(gctx, OUT).pack())
    return status, buffers.SnpGuestStatusPage.parse(machine.bus.read(OUT, buffers.SnpGuestStatusPage.SIZE))


def test_dram_holds_the_context_encrypted_and_what_it_decrypts_to_is_all_that_was_launched():
    machine = snp_guest(up())
    pre_guest(machine, b"code" * 1024)
    assert update(machine) == 0
    found = independently_decrypted(machine)
    expected = LaunchDigest()
    expected.update(PageType.NORMAL, 0x5000, b"code" * 1024)
    assert found[MEASUREMENT_OFFSET : MEASUREMENT_OFFSET + 48] == expected.value
    assert found[POLICY_OFFSET : POLICY_OFFSET + 8] == POLICY.to_bytes(8, "little")
    assert found[:8] == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert machine.bus.keys[2] in found
    assert found == context(machine).pack()


def test_no_secret_shares_a_block_with_what_a_host_chooses():
    fields = {one.name: one.metadata for one in dataclasses.fields(GuestContext)}
    blocks = {
        name: set(range(place["offset"] // BLOCK_BYTES, -(-(place["offset"] + place["width"]) // BLOCK_BYTES)))
        for name, place in fields.items()
    }
    of_secrets = set().union(*(blocks[name] for name in SECRETS))
    assert not of_secrets & set().union(*(blocks[name] for name in set(fields) - SECRETS))
    assert SECRETS | HOST_CHOSEN | {"report_id", "report_id_ma"} == set(fields)
    assert all(f" {name}=" not in repr(GuestContext()) for name in SECRETS)


def test_what_a_host_chooses_changes_no_block_of_a_secret():
    def raw(policy, gosvw, host_data, digest_byte):
        machine = snp_guest(up(), SnpGuestState.INIT)
        start = buffers.SnpLaunchStart(GCTX, policy, gosvw=gosvw)
        assert machine.call(SnpCommand.LAUNCH_START, start.pack()) == 0
        assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == 0
        pre_guest(machine, bytes([digest_byte]) * PAGE)
        assert update(machine) == 0
        assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(GCTX, host_data=host_data).pack()) == 0
        return machine.bus.read(GCTX, PAGE)

    one = raw(POLICY, bytes(16), bytes(32), 0)
    another = raw(POLICY | SnpPolicy.DEBUG, b"\xff" * 16, b"\xff" * 32, 1)
    changed = {at for at in BLOCKS if one[at : at + 16] != another[at : at + 16]}
    places = {item.name: item.metadata for item in dataclasses.fields(GuestContext)}
    expected = set()
    for name in ("policy", "gosvw", "host_data", "digest"):
        first = places[name]["offset"] // 16 * 16
        expected |= set(range(first, places[name]["offset"] + places[name]["width"], 16))
    assert changed == expected


def test_two_boots_have_two_keys_and_one_boot_the_same_through_a_shutdown():
    machine = snp_guest(up(legacy=False))
    old, key = machine.bus.read(GCTX, PAGE), machine.psp.snp.guests.pages._key
    machine.bus.wbinvds += 1
    assert machine.call(SnpCommand.DF_FLUSH) == 0
    assert machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == 0
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8, 0).pack()) == 0
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == 0
    machine.flush(SnpCommand.DF_FLUSH)
    snp_guest(machine, SnpGuestState.INIT)
    assert machine.psp.snp.guests.pages._key is key
    machine.bus.write(GCTX, old)
    assert context(machine).asid == 2
    other_boot = snp_guest(up(), SnpGuestState.INIT)
    other_boot.psp.snp.guests.pages._key = algorithms.AES(bytes(range(32)))
    other_boot.psp.snp.guests.pages._ciphers.clear()
    other_boot.bus.write(GCTX, old)
    assert status_of(other_boot)[0] == Status.INVALID_GUEST


def test_an_older_image_of_the_page_brings_the_older_guest_back():
    machine = snp_guest(up())
    pre_guest(machine, b"first" .ljust(PAGE, b"."))
    assert update(machine) == 0
    old, digest = machine.bus.read(GCTX, PAGE), context(machine).digest
    pre_guest(machine, b"second".ljust(PAGE, b"."))
    assert update(machine) == 0
    finish = buffers.SnpLaunchFinish(GCTX).pack()
    assert machine.call(SnpCommand.LAUNCH_FINISH, finish) == 0
    assert machine.call(SnpCommand.LAUNCH_FINISH, finish) == Status.INVALID_GUEST_STATE
    machine.bus.write(GCTX, old)
    assert status_of(machine)[1].state == SnpGuestState.LAUNCH
    assert machine.psp.launch_record(GCTX).digest == digest
    assert machine.call(SnpCommand.LAUNCH_FINISH, finish) == 0


def test_64_bytes_of_an_honest_guest_at_the_same_page_forge_a_measurement():
    def launch(machine, page):
        snp_guest(machine)
        pre_guest(machine, page)
        assert update(machine) == 0

    machine = up()
    launch(machine, b"honest".ljust(PAGE, b"."))
    honest = machine.psp.launch_record(GCTX).digest
    stolen = machine.bus.read(GCTX + MEASUREMENT_OFFSET, MEASUREMENT_BYTES)
    machine.bus.rmp_set(GUEST_PAGE, FIRMWARE)
    assert machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == 0
    machine.flush(SnpCommand.DF_FLUSH)
    launch(machine, b"malicious".ljust(PAGE, b"."))
    assert machine.psp.launch_record(GCTX).digest != honest
    machine.bus.write(GCTX + MEASUREMENT_OFFSET, stolen)
    assert machine.psp.launch_record(GCTX).digest == honest
    assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(GCTX).pack()) == 0


def test_one_changed_byte_near_1ff_turns_debugging_on_in_about_half_of_the_tries():
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    raw = machine.bus.read(GCTX, PAGE)
    on = 0
    for change in range(1, 256):
        machine.bus.write(GCTX + 0x1FF, bytes([raw[0x1FF] ^ change]))
        status, page = status_of(machine)
        assert status == 0  # and state and ASID are as they were
        assert (page.state, page.asid) == (SnpGuestState.RUNNING, 2)
        on += bool(page.policy & SnpPolicy.DEBUG)
    assert 90 < on < 165


def _swap(machine):
    raw = [machine.bus.read(spa, PAGE) for spa in (GCTX, OTHER)]
    machine.bus.write(GCTX, raw[1])
    machine.bus.write(OTHER, raw[0])


def two_guests(*, tweaked=True):
    machine = up()
    machine.psp.snp.guests.pages.tweaked = tweaked
    snp_guest(machine)
    machine.bus.rmp_set(OTHER, FIRMWARE)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(OTHER).pack()) == 0
    assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(OTHER, POLICY).pack()) == 0
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(OTHER, 3).pack()) == 0
    return machine


def test_contexts_that_change_places_are_none_where_the_address_is_in_the_ciphertext():
    machine = two_guests()
    _swap(machine)
    assert [status_of(machine, one)[0] for one in (GCTX, OTHER)] == [Status.INVALID_GUEST] * 2
    _swap(machine)
    assert [status_of(machine, one)[0] for one in (GCTX, OTHER)] == [Status.SUCCESS] * 2


def test_contexts_that_change_places_change_owners_where_it_is_not():
    machine = two_guests(tweaked=False)
    _swap(machine)
    assert [status_of(machine, one)[1].asid for one in (GCTX, OTHER)] == [3, 2]


COMMANDS = {
    SnpCommand.GUEST_STATUS: buffers.SnpGuestStatus(GCTX, OUT),
    SnpCommand.LAUNCH_START: buffers.SnpLaunchStart(GCTX, POLICY),
    SnpCommand.LAUNCH_UPDATE: buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, GUEST_PAGE),
    SnpCommand.LAUNCH_FINISH: buffers.SnpLaunchFinish(GCTX),
    SnpCommand.ACTIVATE: buffers.SnpActivate(GCTX, 3),
    SnpCommand.DBG_DECRYPT: buffers.SnpDebug(GCTX, GUEST_PAGE, OUT),
    SnpCommand.DBG_ENCRYPT: buffers.SnpDebug(GCTX, OUT, GUEST_PAGE),
}


@pytest.mark.parametrize("state", SnpGuestState)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_context_of_noise_is_no_guest_to_any_command_and_nothing_changes(command, state):
    machine = snp_guest(up(), state)
    pre_guest(machine)
    machine.bus.rmp_set(OUT, FIRMWARE)
    machine.bus.write(GCTX, bytes(16))
    machine.bus.write(COMMAND_PAGE, COMMANDS[command].pack())
    before = machine.snapshot()
    assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_GUEST
    assert machine.snapshot() == before


def test_a_damaged_context_can_still_be_given_back():
    machine = snp_guest(up())
    machine.bus.write(GCTX, b"\xee" * PAGE)
    assert machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == 0
    assert machine.bus.rmp_entry(GCTX) == FIRMWARE
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8, 0).pack()) == Status.SUCCESS
    assert machine.bus.keys == {}


def test_a_context_that_names_an_asid_without_a_key_is_inactive():
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    change_context(machine, asid=4, policy=POLICY | SnpPolicy.DEBUG)
    pre_guest(machine, asid=4)
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.DBG_DECRYPT, COMMANDS[SnpCommand.DBG_DECRYPT].pack()) == Status.INACTIVE
    change_context(machine, state=SnpGuestState.LAUNCH)
    assert update(machine) == Status.INACTIVE


def test_a_page_that_the_rmp_no_longer_calls_a_context_is_no_guest():
    machine = snp_guest(up())
    machine.bus.rmp_set(GCTX, FIRMWARE)
    assert status_of(machine)[0] == Status.INVALID_GUEST
    assert status_of(new_machine(), GCTX)[0] == Status.INVALID_PLATFORM_STATE


def test_no_object_of_the_firmware_holds_a_byte_of_a_guest_between_commands():
    """Two guests that differ in everything leave firmware in equal states."""
    machines = []
    for gosvw, page in ((bytes(16), b"a"), (b"\xff" * 16, b"b")):
        machine = snp_guest(up(), SnpGuestState.INIT)
        assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, POLICY, gosvw=gosvw).pack()) == 0
        assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == 0
        pre_guest(machine, page * PAGE)
        assert update(machine) == 0
        finish = buffers.SnpLaunchFinish(GCTX, host_data=page * 32)
        assert machine.call(SnpCommand.LAUNCH_FINISH, finish.pack()) == 0
        machines.append(machine)
    one, another = machines
    assert one.firmware_state() == another.firmware_state()
    assert one.bus.read(GCTX, PAGE) != another.bus.read(GCTX, PAGE)
