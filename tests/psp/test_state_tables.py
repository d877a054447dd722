"""The state tables, written down here once more from the firmware ABI's sections 3 and 4, and tried in every cell."""

from __future__ import annotations

import hmac

import pytest
from owner import TARGET_CHAIN, TARGET_PDH, exported, lay_chain
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    Machine,
    change_context,
    context,
    new_machine,
    pre_guest,
    sev_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp import swap_buffers
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState, SnpCommand, SnpPlatformState, is_snp
from psp.guest_context import SnpGuestState
from psp.guest_message import MessageKey, MessageType
from psp.launch_digest import PageType
from psp.legacy_guest import LegacyGuestState
from psp.policy import LegacyPolicy, SnpPolicy
from psp.secret_packet import PacketHeader, pack_secret
from psp.sev_session import counter_mode
from psp.status import Status

LEGACY_PLATFORM = {
    LegacyCommand.INIT: {0},
    LegacyCommand.SHUTDOWN: {1, 2},
    LegacyCommand.PLATFORM_STATUS: {0, 1, 2},
    LegacyCommand.DF_FLUSH: {1, 2},
    LegacyCommand.NOP: {0, 1, 2},
    LegacyCommand.RING_BUFFER: {1, 2},
    LegacyCommand.LAUNCH_START: {1, 2},
    LegacyCommand.DECOMMISSION: {2},
    LegacyCommand.ACTIVATE: {2},
    LegacyCommand.ACTIVATE_EX: {2},
    LegacyCommand.DEACTIVATE: {2},
    LegacyCommand.GUEST_STATUS: {2},
    LegacyCommand.LAUNCH_UPDATE_DATA: {2},
    LegacyCommand.LAUNCH_MEASURE: {2},
    LegacyCommand.LAUNCH_FINISH: {2},
    LegacyCommand.LAUNCH_UPDATE_VMSA: {2},
    LegacyCommand.LAUNCH_SECRET: {2},
    LegacyCommand.ATTESTATION: {2},
    LegacyCommand.DBG_DECRYPT: {2},
    LegacyCommand.DBG_ENCRYPT: {2},
    LegacyCommand.PLATFORM_RESET: {0},
    LegacyCommand.DOWNLOAD_FIRMWARE: {0},
    LegacyCommand.PEK_GEN: {1},
    LegacyCommand.PEK_CSR: {1},
    LegacyCommand.PEK_CERT_IMPORT: {1},
    LegacyCommand.PDH_GEN: {1, 2},
    LegacyCommand.PDH_CERT_EXPORT: {1, 2},
    LegacyCommand.GET_ID: {0, 1, 2},
    LegacyCommand.INIT_EX: {0},
    LegacyCommand.COPY: {2},
    LegacyCommand.SWAP_OUT: {2},
    LegacyCommand.SWAP_IN: {2},
    LegacyCommand.SEND_START: {2},
    LegacyCommand.SEND_UPDATE_DATA: {2},
    LegacyCommand.SEND_UPDATE_VMSA: {2},
    LegacyCommand.SEND_FINISH: {2},
    LegacyCommand.SEND_CANCEL: {2},
    LegacyCommand.RECEIVE_START: {1, 2},
    LegacyCommand.RECEIVE_UPDATE_DATA: {2},
    LegacyCommand.RECEIVE_UPDATE_VMSA: {2},
    LegacyCommand.RECEIVE_FINISH: {2},
}
"""UNINIT 0, INIT 1, WORKING 2: a guest's commands need a guest, which makes the platform WORKING."""
_ALWAYS = {SnpCommand.PLATFORM_STATUS, SnpCommand.FEATURE_INFO, SnpCommand.DOWNLOAD_FIRMWARE_EX}
SNP_PLATFORM = {
    command: {0, 1} if command in _ALWAYS else {1}
    for command, row in COMMANDS.items()
    if is_snp(command) and row.supported and command not in {SnpCommand.INIT, SnpCommand.INIT_EX}
} | {SnpCommand.INIT: {0}, SnpCommand.INIT_EX: {0}}
PLATFORM = {**LEGACY_PLATFORM, **SNP_PLATFORM}

LEGACY_GUEST = {
    LegacyCommand.ACTIVATE: {1, 2, 3, 4, 5, 6},
    LegacyCommand.ACTIVATE_EX: {1, 2, 3, 4, 5, 6},
    LegacyCommand.DEACTIVATE: {1, 2, 3, 4, 5, 6},
    LegacyCommand.DECOMMISSION: {1, 2, 3, 4, 5, 6},
    LegacyCommand.GUEST_STATUS: {1, 2, 3, 4, 5, 6},
    LegacyCommand.LAUNCH_UPDATE_DATA: {1},
    LegacyCommand.LAUNCH_MEASURE: {1},
    LegacyCommand.LAUNCH_FINISH: {2},
    LegacyCommand.LAUNCH_UPDATE_VMSA: {1},
    LegacyCommand.LAUNCH_SECRET: {2},
    LegacyCommand.ATTESTATION: {3},
    LegacyCommand.DBG_DECRYPT: {3},
    LegacyCommand.DBG_ENCRYPT: {3},
    LegacyCommand.COPY: {1, 2, 3, 4, 5},
    LegacyCommand.SWAP_OUT: {1, 2, 3, 4, 5},
    LegacyCommand.SWAP_IN: {1, 2, 3, 4, 5},
    LegacyCommand.SEND_START: {3},
    LegacyCommand.SEND_UPDATE_DATA: {4},
    LegacyCommand.SEND_UPDATE_VMSA: {4},
    LegacyCommand.SEND_FINISH: {4},
    LegacyCommand.SEND_CANCEL: {4},
    LegacyCommand.RECEIVE_UPDATE_DATA: {5},
    LegacyCommand.RECEIVE_UPDATE_VMSA: {5},
    LegacyCommand.RECEIVE_FINISH: {5},
}
OTHER_FRAME, ASKED = GUEST_PAGE + PAGE, GUEST_PAGE + 2 * PAGE
SNP_GUEST = {
    SnpCommand.LAUNCH_START: {0},
    SnpCommand.LAUNCH_UPDATE: {1},
    SnpCommand.LAUNCH_FINISH: {1},
    SnpCommand.ACTIVATE: {1, 2},
    SnpCommand.ACTIVATE_EX: {1, 2},
    SnpCommand.DECOMMISSION: {0, 1, 2},
    SnpCommand.GUEST_STATUS: {0, 1, 2},
    SnpCommand.GUEST_REQUEST: {2},
    SnpCommand.DBG_DECRYPT: {2},
    SnpCommand.DBG_ENCRYPT: {2},
    SnpCommand.PAGE_MD_INIT: {2},
    SnpCommand.PAGE_SWAP_OUT: {1, 2},
    SnpCommand.PAGE_SWAP_IN: {1, 2},
    SnpCommand.PAGE_MOVE: {1, 2},
}


def machine_in(command: int, state: int) -> Machine:
    """A machine whose interface for this command is in a state."""
    if is_snp(command):
        return up(legacy=False) if state == SnpPlatformState.INIT else new_machine()
    if state == LegacyPlatformState.UNINIT:
        return new_machine()
    machine = up(snp=False)
    if state == LegacyPlatformState.WORKING:
        sev_guest(machine)
    return machine


def states_of(command: int) -> type[LegacyPlatformState | SnpPlatformState]:
    return SnpPlatformState if is_snp(command) else LegacyPlatformState


def test_the_tables_here_cover_every_command_that_is_built() -> None:
    assert set(PLATFORM) == {command for command, row in COMMANDS.items() if row.supported}


@pytest.mark.parametrize("buffer_spa", [COMMAND_PAGE, 1 << 60], ids=["buffer", "no buffer there"])
@pytest.mark.parametrize(
    ("command", "state"),
    [(command, state) for command in PLATFORM for state in states_of(command) if state not in PLATFORM[command]],
)
def test_a_command_that_the_platform_state_forbids_changes_nothing(command: int, state: int, buffer_spa: int) -> None:
    machine = machine_in(command, state)
    before = machine.snapshot()
    assert machine.psp.submit(command, buffer_spa) == Status.INVALID_PLATFORM_STATE
    assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("command", "state"),
    [(command, state) for command in PLATFORM for state in states_of(command) if state in PLATFORM[command]],
)
def test_a_command_that_the_platform_state_allows_gets_past_it(command: int, state: int) -> None:
    machine = machine_in(command, state)
    assert machine.psp.submit(command, COMMAND_PAGE) != Status.INVALID_PLATFORM_STATE


@pytest.mark.parametrize("state", sorted(set(LegacyGuestState) - {LegacyGuestState.UNINIT}))
@pytest.mark.parametrize("command", LEGACY_GUEST)
def test_every_sev_command_in_every_guest_state(command: LegacyCommand, state: LegacyGuestState) -> None:
    machine = up(snp=False)
    handle = sev_guest(machine)
    guest = machine.psp.legacy.guests[handle]
    guest.state, guest.policy = state, LegacyPolicy.ES  # an ES guest that may be debugged
    header, ciphertext = pack_secret(guest.transport, bytes(64), guest.measure, bytes(16), (1, 55))
    if command in {LegacyCommand.RECEIVE_UPDATE_DATA, LegacyCommand.RECEIVE_UPDATE_VMSA}:
        length, tag = (64, 2) if command == LegacyCommand.RECEIVE_UPDATE_DATA else (PAGE, 3)
        ciphertext = counter_mode(guest.transport.tek, bytes(16), bytes(length))
        said = bytes([tag]) + bytes(4 + 16) + length.to_bytes(4, "little") * 2 + ciphertext
        header = PacketHeader(mac=hmac.digest(guest.transport.tik, said, "sha256"))
    if command == LegacyCommand.SEND_START:
        lay_chain(machine, exported(machine))
    machine.bus.write(OUT, header.pack())
    machine.bus.write(OUT + PAGE, ciphertext)
    machine.bus.seal_save_area(GUEST_PAGE, guest.asid)
    buffer = {
        LegacyCommand.ACTIVATE: buffers.Activate(handle, 7),
        LegacyCommand.ACTIVATE_EX: buffers.ActivateEx(0x18, handle, 7, 1, 0x5000),
        LegacyCommand.GUEST_STATUS: buffers.GuestStatus(handle),
        LegacyCommand.LAUNCH_UPDATE_DATA: buffers.LaunchUpdateData(handle, GUEST_PAGE, 64),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(handle, OUT, 48),
        LegacyCommand.LAUNCH_UPDATE_VMSA: buffers.LaunchUpdateVmsa(handle, GUEST_PAGE, PAGE),
        LegacyCommand.LAUNCH_SECRET: buffers.LaunchSecret(handle, OUT, 0x34, GUEST_PAGE, 64, OUT + PAGE, 64),
        LegacyCommand.ATTESTATION: buffers.Attestation(handle, OUT, bytes(16), 0xD0),
        LegacyCommand.COPY: buffers.Copy(handle, 64, GUEST_PAGE, OUT),
        LegacyCommand.SWAP_OUT: swap_buffers.SwapOut(handle, 0, GUEST_PAGE, OUT, OUT + PAGE),
        LegacyCommand.SWAP_IN: swap_buffers.SwapIn(handle, 0, OUT, GUEST_PAGE, OUT + 2 * PAGE),
        LegacyCommand.SEND_START: buffers.SendStart(
            handle, 0, TARGET_PDH, 0x824, TARGET_CHAIN, 3 * 0x824, session_address=OUT, session_length=0x80
        ),
        LegacyCommand.SEND_UPDATE_DATA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, 64, OUT + PAGE, 64),
        LegacyCommand.SEND_UPDATE_VMSA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, PAGE, OUT + PAGE, PAGE),
        LegacyCommand.RECEIVE_UPDATE_DATA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, 64, OUT + PAGE, 64),
        LegacyCommand.RECEIVE_UPDATE_VMSA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, PAGE, OUT + PAGE, PAGE),
        LegacyCommand.DBG_DECRYPT: buffers.Debug(handle, GUEST_PAGE, OUT, 64),
        LegacyCommand.DBG_ENCRYPT: buffers.Debug(handle, OUT, GUEST_PAGE, 64),
    }.get(command, buffers.Handle(handle))
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    if state in LEGACY_GUEST[command]:
        # The guest is active: it cannot be activated again, nor given up as it is.
        # Of what lies in place of a page that is out, nothing was this guest's.
        refusals = {LegacyCommand.ACTIVATE: Status.ACTIVE, LegacyCommand.DECOMMISSION: Status.ACTIVE}
        refusals[LegacyCommand.ACTIVATE_EX] = Status.ACTIVE
        refusals[LegacyCommand.SWAP_IN] = Status.BAD_MEASUREMENT
        assert status == refusals.get(command, Status.SUCCESS)
    else:
        assert status == Status.INVALID_GUEST_STATE
        assert machine.snapshot() == before


@pytest.mark.parametrize("handle", [0, 2, 0xFFFF_FFFF])
@pytest.mark.parametrize("command", LEGACY_GUEST)
def test_a_handle_of_no_guest_is_an_invalid_guest(command: LegacyCommand, handle: int) -> None:
    machine = up(snp=False)
    sev_guest(machine)
    machine.bus.write(COMMAND_PAGE, handle.to_bytes(4, "little").ljust(0x40, b"\0"))
    before = machine.snapshot()
    assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_GUEST
    assert machine.snapshot() == before


@pytest.mark.parametrize("state", SnpGuestState)
@pytest.mark.parametrize("command", SNP_GUEST)
def test_every_snp_command_in_every_guest_state(command: SnpCommand, state: SnpGuestState) -> None:
    machine = snp_guest(up(), state)
    change_context(machine, policy=POLICY | SnpPolicy.DEBUG)
    pre_guest(machine)
    machine.bus.rmp_set(OTHER_FRAME, machine.bus.rmp_entry(GUEST_PAGE))
    machine.bus.rmp_set(OUT, FIRMWARE)
    asked = MessageKey(context(machine).vmpck(0)).seal(0, 1, MessageType.TSC_INFO_REQ, 1, bytes(128))
    machine.bus.write(ASKED, asked)
    buffer = {
        SnpCommand.LAUNCH_START: buffers.SnpLaunchStart(GCTX, POLICY),
        SnpCommand.LAUNCH_UPDATE: buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, GUEST_PAGE),
        SnpCommand.LAUNCH_FINISH: buffers.SnpLaunchFinish(GCTX),
        SnpCommand.ACTIVATE: buffers.SnpActivate(GCTX, 3),
        SnpCommand.ACTIVATE_EX: buffers.SnpActivateEx(0x20, GCTX, 3, 1, 0x5000),
        SnpCommand.GUEST_STATUS: buffers.SnpGuestStatus(GCTX, OUT),
        SnpCommand.DECOMMISSION: buffers.GuestContextPage(GCTX),
        SnpCommand.PAGE_MD_INIT: swap_buffers.SnpPageMdInit(GCTX, OUT),
        SnpCommand.PAGE_SWAP_OUT: swap_buffers.SnpPageSwapOut(GCTX, GUEST_PAGE, OUT, flags=1 << 4),
        SnpCommand.PAGE_SWAP_IN: swap_buffers.SnpPageSwapIn(GCTX, OUT, GUEST_PAGE, flags=1 << 4),
        SnpCommand.PAGE_MOVE: swap_buffers.SnpPageMove(GCTX, 0, GUEST_PAGE, OTHER_FRAME),
        SnpCommand.GUEST_REQUEST: buffers.SnpGuestRequest(GCTX, ASKED, OUT),
        SnpCommand.DBG_DECRYPT: buffers.SnpDebug(GCTX, GUEST_PAGE, OUT),
        SnpCommand.DBG_ENCRYPT: buffers.SnpDebug(GCTX, OUT, GUEST_PAGE),
    }[command]
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    if state in SNP_GUEST[command]:
        # The guest is active already, and no page of it is out.
        refusals = {SnpCommand.ACTIVATE: Status.ACTIVE, SnpCommand.ACTIVATE_EX: Status.ACTIVE}
        refusals |= {SnpCommand.PAGE_SWAP_IN: Status.INVALID_MDATA_ENTRY}
        assert status == refusals.get(command, Status.SUCCESS)
    else:
        assert status == Status.INVALID_GUEST_STATE
        assert machine.snapshot() == before


@pytest.mark.parametrize("state", SnpGuestState)
def test_pages_are_reclaimed_in_every_guest_state(state: SnpGuestState) -> None:
    machine = snp_guest(up(), state)
    pre_guest(machine)
    assert machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(GUEST_PAGE).pack()) == 0
