"""MSG_KEY_REQ: keys that a guest gets again as often as it is the same guest on the same platform.

The root is the chip's VCEK or VLEK, or what a migration agent gave; the request selects which facts of the guest go
into the derivation, so that whoever differs in one of them gets another key. Firmware's own derivation is not
published: label and record follow AMD's sev-tool (sevapi.h), with the whole measurement where that has 32 bytes of
it, and without its fields that no request selects (SEV-SNP firmware ABI, section 7.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.elliptic import COORDINATE_BYTES
from psp.endorsement import Endorsement
from psp.guest_context import DIGEST_BYTES, GuestContext
from psp.guest_message import VMPCKS
from psp.guest_requests import Request
from psp.installed_firmware import InstalledFirmware, tcb_at_most
from psp.key_derivation import derive
from psp.status import PspError, Status

DERIVED_KEY_BYTES = 32
ROOT_VMRK = 1 << 0
_KEY_SELECTION_SHIFT = 1
_ROOT_BITS = 0b111

SELECT_POLICY = 1 << 0
SELECT_IMAGE_ID = 1 << 1
SELECT_FAMILY_ID = 1 << 2
SELECT_MEASUREMENT = 1 << 3
SELECT_GUEST_SVN = 1 << 4
SELECT_TCB = 1 << 5
SELECT_MITIGATIONS = 1 << 6
_SELECTABLE = {1: (1 << 6) - 1, 2: (1 << 7) - 1}
"""By the request's version."""
KEY_REQUEST_BYTES = {1: 0x20, 2: 0x28}


@dataclass(frozen=True, slots=True)
class KeyRequest(ByteLayout):
    """MSG_KEY_REQ of version 2; version 1 ends before the mitigations."""

    SIZE: ClassVar[int] = 0x28
    root: int = at(0x00, 4)
    reserved: int = at(0x04, 4)
    fields: int = at(0x08, 8)
    vmpl: int = at(0x10, 4)
    guest_svn: int = at(0x14, 4)
    tcb: int = at(0x18, 8)
    mitigations: int = at(0x20, 8)


@dataclass(frozen=True, slots=True)
class KeyResponse(ByteLayout):
    """MSG_KEY_RSP."""

    SIZE: ClassVar[int] = 0x40
    status: int = at(0x00, 4)
    key: bytes = at(0x20, DERIVED_KEY_BYTES, bytes(DERIVED_KEY_BYTES))


@dataclass(frozen=True, slots=True)
class _Mixed(ByteLayout):
    """What goes into a key; fields that were not selected are zero."""

    SIZE: ClassVar[int] = 0x90
    root: int = at(0x00, 4)
    fields: int = at(0x08, 8)
    vmpl: int = at(0x10, 4)
    guest_svn: int = at(0x14, 4)
    tcb: int = at(0x18, 8)
    policy: int = at(0x20, 8)
    image_id: bytes = at(0x28, 16, bytes(16))
    family_id: bytes = at(0x38, 16, bytes(16))
    measurement: bytes = at(0x48, DIGEST_BYTES, bytes(DIGEST_BYTES))
    mitigations: int = at(0x78, 8)


class RootTcb(StrEnum):
    """For which TCB version a VCEK or VLEK is derived that is a root. Nobody has published it."""

    ASKED = auto()
    """The one that the request selects, 0 where it selects none: keys outlive an update of firmware, and newer firmware
    opens what was sealed to an older version, if it is told which. So users go by it who change the keys of their disks
    after an update (dfinity/ic pull request 11476), and there would be no use in naming a version otherwise."""
    REPORTED = auto()
    """The reported one: every key changes when that does, as a maintainer holds (virtee/snpguest issue 156)."""


class KeyMessages:
    """Answers them."""

    def __init__(self, endorsement: Endorsement, firmware: InstalledFirmware) -> None:
        self.root_tcb = RootTcb.ASKED
        self._endorsement = endorsement
        self._firmware = firmware

    def answer(self, request: Request) -> bytes:
        """The response's payload. A VMPL may have its own keys and those of VMPLs below it, by number above."""
        asked = KeyRequest.parse(request.payload.ljust(KeyRequest.SIZE, b"\0"))
        try:
            self._check(asked, request)
            root = self._root(asked, request.context)
        except PspError as refused:
            return KeyResponse(refused.status).pack()
        mixed = _mixed(asked, request.context).pack()
        return KeyResponse(Status.SUCCESS, derive(root, "gmsg-keyreq", mixed, DERIVED_KEY_BYTES)).pack()

    def _check(self, asked: KeyRequest, request: Request) -> None:
        context = request.context
        if (
            asked.root & ~_ROOT_BITS
            or asked.reserved
            or asked.fields & ~_SELECTABLE[request.version]
            or not request.vmpl <= asked.vmpl < VMPCKS
            or asked.guest_svn > context.guest_svn
            or not tcb_at_most(asked.tcb, self._firmware.committed.tcb)
            # What a guest may claim of mitigations is not published: none that were not on at its launch.
            or asked.mitigations & ~context.launch_mitigations
        ):
            raise PspError(Status.INVALID_PARAM)

    def _root(self, asked: KeyRequest, context: GuestContext) -> bytes:
        if asked.root & ROOT_VMRK:
            if not any(context.vmrk):
                raise PspError(Status.INVALID_KEY)
            return context.vmrk
        which = self._endorsement.chosen(asked.root >> _KEY_SELECTION_SHIFT, context)
        tcb = asked.tcb if asked.fields & SELECT_TCB else 0
        if self.root_tcb is RootTcb.REPORTED:
            tcb = self._firmware.reported_tcb
        scalar = self._endorsement.key(which, tcb).private_numbers().private_value
        return scalar.to_bytes(COORDINATE_BYTES, "little")


def _mixed(asked: KeyRequest, context: GuestContext) -> _Mixed:
    fields = asked.fields
    return _Mixed(
        asked.root,
        fields,
        asked.vmpl,
        asked.guest_svn if fields & SELECT_GUEST_SVN else 0,
        asked.tcb if fields & SELECT_TCB else 0,
        context.policy if fields & SELECT_POLICY else 0,
        context.image_id if fields & SELECT_IMAGE_ID else b"",
        context.family_id if fields & SELECT_FAMILY_ID else b"",
        context.digest if fields & SELECT_MEASUREMENT else b"",
        asked.mitigations if fields & SELECT_MITIGATIONS else 0,
    )
