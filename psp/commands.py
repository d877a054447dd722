"""Every mailbox command: its number, its buffer, and when it is allowed.

SEV API (55766) chapters 5 to 7; SEV-SNP firmware ABI (56860) chapter 8; SEV-TIO (58271). A
command without a handler answers UNSUPPORTED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from psp import command_buffers as buffers
from psp import swap_buffers
from psp.byte_layout import ByteLayout
from psp.system_bus import PAGE_BYTES
from psp.tsm import tio_buffers
from psp.update_buffers import DownloadFirmware, SnpDownloadFirmwareEx


class LegacyCommand(IntEnum):
    """Commands for SEV and SEV-ES."""

    INIT = 0x01
    SHUTDOWN = 0x02
    PLATFORM_RESET = 0x03
    PLATFORM_STATUS = 0x04
    PEK_GEN = 0x05
    PEK_CSR = 0x06
    PEK_CERT_IMPORT = 0x07
    PDH_CERT_EXPORT = 0x08
    PDH_GEN = 0x09
    DF_FLUSH = 0x0A
    DOWNLOAD_FIRMWARE = 0x0B
    GET_ID = 0x0C
    INIT_EX = 0x0D
    NOP = 0x0E
    RING_BUFFER = 0x0F
    DECOMMISSION = 0x20
    ACTIVATE = 0x21
    DEACTIVATE = 0x22
    GUEST_STATUS = 0x23
    COPY = 0x24
    ACTIVATE_EX = 0x25
    LAUNCH_START = 0x30
    LAUNCH_UPDATE_DATA = 0x31
    LAUNCH_UPDATE_VMSA = 0x32
    LAUNCH_MEASURE = 0x33
    LAUNCH_SECRET = 0x34
    LAUNCH_FINISH = 0x35
    ATTESTATION = 0x36
    SEND_START = 0x40
    SEND_UPDATE_DATA = 0x41
    SEND_UPDATE_VMSA = 0x42
    SEND_FINISH = 0x43
    SEND_CANCEL = 0x44
    RECEIVE_START = 0x50
    RECEIVE_UPDATE_DATA = 0x51
    RECEIVE_UPDATE_VMSA = 0x52
    RECEIVE_FINISH = 0x53
    DBG_DECRYPT = 0x60
    DBG_ENCRYPT = 0x61
    SWAP_OUT = 0x70
    SWAP_IN = 0x71


class SnpCommand(IntEnum):
    """Commands for SEV-SNP and SEV-TIO."""

    INIT = 0x81
    SHUTDOWN = 0x82
    PLATFORM_STATUS = 0x83
    DF_FLUSH = 0x84
    INIT_EX = 0x85
    SHUTDOWN_EX = 0x86
    DECOMMISSION = 0x90
    ACTIVATE = 0x91
    GUEST_STATUS = 0x92
    GCTX_CREATE = 0x93
    GUEST_REQUEST = 0x94
    ACTIVATE_EX = 0x95
    LAUNCH_START = 0xA0
    LAUNCH_UPDATE = 0xA1
    LAUNCH_FINISH = 0xA2
    DBG_DECRYPT = 0xB0
    DBG_ENCRYPT = 0xB1
    VERIFY_MITIGATION = 0xB2
    PAGE_SWAP_OUT = 0xC0
    PAGE_SWAP_IN = 0xC1
    PAGE_MOVE = 0xC2
    PAGE_MD_INIT = 0xC3
    PAGE_SET_STATE = 0xC6
    PAGE_RECLAIM = 0xC7
    PAGE_UNSMASH = 0xC8
    CONFIG = 0xC9
    DOWNLOAD_FIRMWARE_EX = 0xCA
    COMMIT = 0xCB
    VLEK_LOAD = 0xCD
    FEATURE_INFO = 0xCE
    TIO_STATUS = 0xD0
    TIO_INIT = 0xD1
    TIO_DEV_CREATE = 0xD2
    TIO_DEV_RECLAIM = 0xD3
    TIO_DEV_CONNECT = 0xD4
    TIO_DEV_DISCONNECT = 0xD5
    TIO_DEV_STATUS = 0xD6
    TIO_DEV_MEASUREMENTS = 0xD7
    TIO_DEV_CERTIFICATES = 0xD8
    TIO_TDI_CREATE = 0xDA
    TIO_TDI_RECLAIM = 0xDB
    TIO_TDI_BIND = 0xDC
    TIO_TDI_UNBIND = 0xDD
    TIO_TDI_REPORT = 0xDE
    TIO_TDI_STATUS = 0xDF
    TIO_GUEST_REQUEST = 0xE0
    TIO_ASID_FENCE_CLEAR = 0xE1
    TIO_ASID_FENCE_STATUS = 0xE2
    TIO_TDI_INFO = 0xE3
    TIO_ROLL_KEY = 0xE4


class LegacyPlatformState(IntEnum):
    """PLATFORM_STATUS.STATE; WORKING while there is a guest."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


class SnpPlatformState(IntEnum):
    """SNP_PLATFORM_STATUS.STATE."""

    UNINIT = 0
    INIT = 1


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command: buffer layout, platform states of its interface in which it may come, and whether it is built."""

    layout: type[ByteLayout] | None
    states: frozenset[int]
    supported: bool = True
    writes_buffer: bool = False
    """The firmware returns fields in the command buffer itself."""


_L, _S = LegacyPlatformState, SnpPlatformState
_ANY_LEGACY = frozenset(_L)
_UP = frozenset({_L.INIT, _L.WORKING})
_ANY_SNP = frozenset(_S)
_SNP_UP = frozenset({_S.INIT})

COMMANDS: Mapping[int, CommandRow] = {
    LegacyCommand.INIT: CommandRow(buffers.Init, frozenset({_L.UNINIT})),
    LegacyCommand.SHUTDOWN: CommandRow(None, _UP),
    LegacyCommand.PLATFORM_STATUS: CommandRow(buffers.PlatformStatus, _ANY_LEGACY, writes_buffer=True),
    LegacyCommand.DF_FLUSH: CommandRow(None, _UP),
    LegacyCommand.NOP: CommandRow(None, _ANY_LEGACY),
    LegacyCommand.RING_BUFFER: CommandRow(buffers.RingBuffer, _UP),
    LegacyCommand.DECOMMISSION: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.ACTIVATE: CommandRow(buffers.Activate, frozenset({_L.WORKING})),
    LegacyCommand.ACTIVATE_EX: CommandRow(buffers.ActivateEx, frozenset({_L.WORKING})),
    LegacyCommand.DEACTIVATE: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.GUEST_STATUS: CommandRow(buffers.GuestStatus, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.LAUNCH_START: CommandRow(buffers.LaunchStart, _UP, writes_buffer=True),
    LegacyCommand.LAUNCH_UPDATE_DATA: CommandRow(buffers.LaunchUpdateData, frozenset({_L.WORKING})),
    LegacyCommand.LAUNCH_MEASURE: CommandRow(buffers.LaunchMeasure, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.LAUNCH_FINISH: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.LAUNCH_UPDATE_VMSA: CommandRow(buffers.LaunchUpdateVmsa, frozenset({_L.WORKING})),
    LegacyCommand.LAUNCH_SECRET: CommandRow(buffers.LaunchSecret, frozenset({_L.WORKING})),
    LegacyCommand.ATTESTATION: CommandRow(buffers.Attestation, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.DBG_DECRYPT: CommandRow(buffers.Debug, frozenset({_L.WORKING})),
    LegacyCommand.DBG_ENCRYPT: CommandRow(buffers.Debug, frozenset({_L.WORKING})),
    LegacyCommand.INIT_EX: CommandRow(buffers.InitEx, frozenset({_L.UNINIT})),
    LegacyCommand.COPY: CommandRow(buffers.Copy, frozenset({_L.WORKING})),
    LegacyCommand.SWAP_OUT: CommandRow(swap_buffers.SwapOut, frozenset({_L.WORKING})),
    LegacyCommand.SWAP_IN: CommandRow(swap_buffers.SwapIn, frozenset({_L.WORKING})),
    LegacyCommand.SEND_START: CommandRow(buffers.SendStart, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.SEND_UPDATE_DATA: CommandRow(buffers.SendUpdate, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.SEND_UPDATE_VMSA: CommandRow(buffers.SendUpdate, frozenset({_L.WORKING}), writes_buffer=True),
    LegacyCommand.SEND_FINISH: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.SEND_CANCEL: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.RECEIVE_START: CommandRow(buffers.LaunchStart, _UP, writes_buffer=True),
    LegacyCommand.RECEIVE_UPDATE_DATA: CommandRow(buffers.SendUpdate, frozenset({_L.WORKING})),
    LegacyCommand.RECEIVE_UPDATE_VMSA: CommandRow(buffers.SendUpdate, frozenset({_L.WORKING})),
    LegacyCommand.RECEIVE_FINISH: CommandRow(buffers.Handle, frozenset({_L.WORKING})),
    LegacyCommand.PLATFORM_RESET: CommandRow(None, frozenset({_L.UNINIT})),
    LegacyCommand.DOWNLOAD_FIRMWARE: CommandRow(DownloadFirmware, frozenset({_L.UNINIT})),
    LegacyCommand.PEK_GEN: CommandRow(None, frozenset({_L.INIT})),
    LegacyCommand.PEK_CSR: CommandRow(buffers.Output, frozenset({_L.INIT}), writes_buffer=True),
    LegacyCommand.PEK_CERT_IMPORT: CommandRow(buffers.PekCertImport, frozenset({_L.INIT})),
    LegacyCommand.PDH_GEN: CommandRow(None, _UP),
    LegacyCommand.PDH_CERT_EXPORT: CommandRow(buffers.PdhCertExport, _UP, writes_buffer=True),
    LegacyCommand.GET_ID: CommandRow(buffers.Output, _ANY_LEGACY, writes_buffer=True),
    SnpCommand.INIT: CommandRow(None, frozenset({_S.UNINIT})),
    SnpCommand.INIT_EX: CommandRow(buffers.SnpInitEx, frozenset({_S.UNINIT})),
    SnpCommand.SHUTDOWN_EX: CommandRow(buffers.SnpShutdownEx, _SNP_UP),
    SnpCommand.PLATFORM_STATUS: CommandRow(buffers.SnpAddress, _ANY_SNP),
    SnpCommand.DF_FLUSH: CommandRow(None, _SNP_UP),
    SnpCommand.DECOMMISSION: CommandRow(buffers.GuestContextPage, _SNP_UP),
    SnpCommand.ACTIVATE: CommandRow(buffers.SnpActivate, _SNP_UP),
    SnpCommand.ACTIVATE_EX: CommandRow(buffers.SnpActivateEx, _SNP_UP),
    SnpCommand.GUEST_STATUS: CommandRow(buffers.SnpGuestStatus, _SNP_UP),
    SnpCommand.GCTX_CREATE: CommandRow(buffers.GuestContextPage, _SNP_UP),
    SnpCommand.GUEST_REQUEST: CommandRow(buffers.SnpGuestRequest, _SNP_UP),
    SnpCommand.LAUNCH_START: CommandRow(buffers.SnpLaunchStart, _SNP_UP),
    SnpCommand.LAUNCH_UPDATE: CommandRow(buffers.SnpLaunchUpdate, _SNP_UP),
    SnpCommand.LAUNCH_FINISH: CommandRow(buffers.SnpLaunchFinish, _SNP_UP),
    SnpCommand.DBG_DECRYPT: CommandRow(buffers.SnpDebug, _SNP_UP),
    SnpCommand.DBG_ENCRYPT: CommandRow(buffers.SnpDebug, _SNP_UP),
    SnpCommand.VERIFY_MITIGATION: CommandRow(buffers.SnpVerifyMitigation, _SNP_UP),
    SnpCommand.CONFIG: CommandRow(buffers.SnpConfig, _SNP_UP),
    SnpCommand.DOWNLOAD_FIRMWARE_EX: CommandRow(SnpDownloadFirmwareEx, _ANY_SNP),
    SnpCommand.COMMIT: CommandRow(buffers.SnpCommit, _SNP_UP),
    SnpCommand.VLEK_LOAD: CommandRow(buffers.SnpVlekLoad, _SNP_UP),
    SnpCommand.SHUTDOWN: CommandRow(None, _SNP_UP),
    SnpCommand.PAGE_MD_INIT: CommandRow(swap_buffers.SnpPageMdInit, _SNP_UP),
    SnpCommand.PAGE_SWAP_OUT: CommandRow(swap_buffers.SnpPageSwapOut, _SNP_UP),
    SnpCommand.PAGE_SWAP_IN: CommandRow(swap_buffers.SnpPageSwapIn, _SNP_UP),
    SnpCommand.PAGE_MOVE: CommandRow(swap_buffers.SnpPageMove, _SNP_UP),
    SnpCommand.PAGE_RECLAIM: CommandRow(buffers.SnpPageReclaim, _SNP_UP),
    SnpCommand.PAGE_UNSMASH: CommandRow(buffers.SnpPageUnsmash, _SNP_UP),
    SnpCommand.FEATURE_INFO: CommandRow(buffers.SnpFeatureInfo, _ANY_SNP),
    SnpCommand.TIO_STATUS: CommandRow(tio_buffers.TioStatus, _SNP_UP),
    SnpCommand.TIO_INIT: CommandRow(tio_buffers.TioInit, _SNP_UP),
    SnpCommand.TIO_DEV_CREATE: CommandRow(tio_buffers.DeviceCreate, _SNP_UP),
    SnpCommand.TIO_DEV_RECLAIM: CommandRow(tio_buffers.DeviceReclaim, _SNP_UP),
    SnpCommand.TIO_DEV_CONNECT: CommandRow(tio_buffers.DeviceConnect, _SNP_UP),
    SnpCommand.TIO_DEV_DISCONNECT: CommandRow(tio_buffers.DeviceOrder, _SNP_UP),
    SnpCommand.TIO_DEV_STATUS: CommandRow(tio_buffers.DeviceStatus, _SNP_UP),
    SnpCommand.TIO_DEV_MEASUREMENTS: CommandRow(tio_buffers.DeviceMeasurements, _SNP_UP),
    SnpCommand.TIO_DEV_CERTIFICATES: CommandRow(tio_buffers.DeviceOrder, _SNP_UP),
    SnpCommand.TIO_TDI_CREATE: CommandRow(tio_buffers.TdiCreate, _SNP_UP),
    SnpCommand.TIO_TDI_RECLAIM: CommandRow(tio_buffers.TdiReclaim, _SNP_UP),
    SnpCommand.TIO_TDI_BIND: CommandRow(tio_buffers.TdiBind, _SNP_UP),
    SnpCommand.TIO_TDI_UNBIND: CommandRow(tio_buffers.TdiOrder, _SNP_UP),
    SnpCommand.TIO_TDI_REPORT: CommandRow(tio_buffers.TdiOrder, _SNP_UP),
    SnpCommand.TIO_TDI_STATUS: CommandRow(tio_buffers.TdiStatus, _SNP_UP),
    SnpCommand.TIO_GUEST_REQUEST: CommandRow(tio_buffers.TioGuestRequest, _SNP_UP),
    SnpCommand.TIO_ASID_FENCE_CLEAR: CommandRow(tio_buffers.FenceClear, _SNP_UP),
    SnpCommand.TIO_ASID_FENCE_STATUS: CommandRow(tio_buffers.FenceStatus, _SNP_UP),
    SnpCommand.TIO_TDI_INFO: CommandRow(tio_buffers.TdiInfo, _SNP_UP),
    SnpCommand.TIO_ROLL_KEY: CommandRow(tio_buffers.DeviceOrder, _SNP_UP),
    SnpCommand.PAGE_SET_STATE: CommandRow(None, _ANY_LEGACY, supported=False),
}
"""The truth about commands: what is not in it is INVALID_COMMAND."""


def is_snp(command: int) -> bool:
    """Whether a command belongs to the SNP interface."""
    return command >= SnpCommand.INIT


def command_name(command: int) -> str:
    """The specification's name of a command, for people."""
    kind: type[IntEnum] = SnpCommand if is_snp(command) else LegacyCommand
    name = kind(command).name if command in kind._value2member_map_ else f"command {command:#x}"
    return f"SNP_{name}" if is_snp(command) else name


def measured_bytes(command: int, buffer: bytes) -> int:
    """How many bytes a launch command with this buffer measures, 0 for other commands."""
    if command == SnpCommand.LAUNCH_UPDATE:
        return PAGE_BYTES
    if command == LegacyCommand.LAUNCH_UPDATE_VMSA:
        return PAGE_BYTES
    if command == LegacyCommand.LAUNCH_UPDATE_DATA and len(buffer) >= buffers.LaunchUpdateData.SIZE:
        return buffers.LaunchUpdateData.parse(buffer).length
    return 0
