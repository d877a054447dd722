"""Status codes of the firmware, bits 15:0 of CmdResp."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The specification's names and numbers (SEV-SNP firmware ABI, chapter 6; SEV API, chapter 5; SEV-TIO)."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LENGTH = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    RB_MODE_EXITED = 0x1F
    RMP_INIT_REQUIRED = 0x20
    BAD_SVN = 0x21
    BAD_VERSION = 0x22
    SHUTDOWN_REQUIRED = 0x23
    UPDATE_FAILED = 0x24
    RESTORE_REQUIRED = 0x25
    RMP_INIT_FAILED = 0x26
    INVALID_KEY = 0x27
    SHUTDOWN_INCOMPLETE = 0x28
    INCORRECT_BUFFER_LENGTH = 0x30
    EXPAND_BUFFER_LENGTH_REQUEST = 0x31
    SPDM_REQUEST = 0x32
    """No error: the host carries a packet to the device and gives the command again."""
    SPDM_ERROR = 0x33
    ERR_IN_DEV_CONN = 0x35
    INVALID_DEV_CTX = 0x36
    INVALID_TDI_CTX = 0x37
    INVALID_TDI = 0x38
    RECLAIM_REQUIRED = 0x39
    IN_USE = 0x3A
    INVALID_DEV_STATE = 0x3B
    INVALID_TDI_STATE = 0x3C
    DEV_CERT_CHANGED = 0x3D
    RESYNC_REQ = 0x3E
    RESPONSE_TOO_LARGE = 0x3F


class PspError(Exception):
    """A command that the firmware refuses; ``status`` is what the host reads."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status
