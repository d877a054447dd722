"""Messages of migration agents: seams for who moves guests, with the checks that need no agent (SNP ABI, 7.5 to 7.9).

No guest here is launched with a migration agent, so none may export, be absorbed into or be given a root key by
another: the answer is INVALID_PARAM. What a guest may do by itself, and taking in a guest from outside, are
UNSUPPORTED until somebody builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.commands import SnpCommand
from psp.guest_context import NO_MIGRATION_AGENT, VMRK_BYTES, GuestContext, SnpGuestState
from psp.guest_message import MessageType
from psp.guest_requests import Answerer, MessageRow, Request
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status

EXPORTED_BYTES = 0x300
EXPORTED_VERSION = 2


@dataclass(frozen=True, slots=True)
class ExportRequest(ByteLayout):
    """MSG_EXPORT_REQ; IMI_EN in bit 0 of the flags."""

    SIZE: ClassVar[int] = 0x10
    gctx: int = at(0x00, 8)
    flags: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class ExportResponse(ByteLayout):
    """MSG_EXPORT_RSP, up to the exported context."""

    SIZE: ClassVar[int] = 0x20
    status: int = at(0x00, 4)
    exported_bytes: int = at(0x04, 4)
    exported_version: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class ImportRequest(ByteLayout):
    """MSG_IMPORT_REQ, MSG_ABSORB_REQ and MSG_ABSORB_NOMA_REQ; the last has zero for the context."""

    SIZE: ClassVar[int] = 0x20 + EXPORTED_BYTES
    gctx: int = at(0x00, 8)
    exported_bytes: int = at(0x08, 4)
    exported_version: int = at(0x0C, 4)
    exported: bytes = at(0x20, EXPORTED_BYTES, bytes(EXPORTED_BYTES))


@dataclass(frozen=True, slots=True)
class VmrkRequest(ByteLayout):
    """MSG_VMRK_REQ."""

    SIZE: ClassVar[int] = 0x40
    gctx: int = at(0x00, 8)
    vmrk: bytes = at(0x20, VMRK_BYTES, bytes(VMRK_BYTES))


@dataclass(frozen=True, slots=True)
class StatusResponse(ByteLayout):
    """The response to all but an export."""

    SIZE: ClassVar[int] = 0x10
    status: int = at(0x00, 4)


class MigrationMessages:
    """Answers them. An agent speaks from VMPL0."""

    def __init__(self, guests: SnpGuests) -> None:
        self._guests = guests
        answers: Mapping[MessageType, tuple[type[ByteLayout], Answerer]] = {
            MessageType.EXPORT_REQ: (ExportRequest, self._export),
            MessageType.IMPORT_REQ: (ImportRequest, self._import),
            MessageType.ABSORB_REQ: (ImportRequest, self._absorb),
            MessageType.VMRK_REQ: (VmrkRequest, self._vmrk),
            MessageType.ABSORB_NOMA_REQ: (ImportRequest, self._absorb_alone),
        }
        self.rows: Mapping[int, MessageRow] = {
            kind: MessageRow({1: layout.SIZE}, answer) for kind, (layout, answer) in answers.items()
        }

    def _export(self, request: Request) -> bytes:
        """Of another guest for its agent; of itself for a guest without one."""
        asked = ExportRequest.parse(request.payload)
        alone = asked.gctx == request.gctx and request.context.report_id_ma == NO_MIGRATION_AGENT
        holds = not request.vmpl and not asked.flags & ~1 and (alone or self._serves(request, asked.gctx))
        return ExportResponse(_seam(holds=holds)).pack()

    def _import(self, request: Request) -> bytes:
        """Into a context that nothing was launched in, of a guest whose pages are out."""
        asked = ImportRequest.parse(request.payload)
        target = self._context(asked.gctx)
        fresh = target is not None and target.state == SnpGuestState.INIT
        root_mdata = int.from_bytes(asked.exported[_ROOT_MDATA_FLAGS : _ROOT_MDATA_FLAGS + 8], "little")
        holds = not request.vmpl and _whole(asked) and fresh and bool(root_mdata & _VALID)
        return StatusResponse(_seam(holds=holds)).pack()

    def _absorb(self, request: Request) -> bytes:
        """Into a guest of this agent's that was launched with an initial migration image."""
        asked = ImportRequest.parse(request.payload)
        holds = not request.vmpl and _whole(asked) and self._serves(request, asked.gctx)
        return StatusResponse(_seam(holds=holds)).pack()

    def _absorb_alone(self, _: Request) -> bytes:
        """Into the guest that asks, which must have been launched with such an image; none is."""
        return StatusResponse(Status.INVALID_PARAM).pack()

    def _vmrk(self, request: Request) -> bytes:
        """A root key for a guest of this agent's."""
        asked = VmrkRequest.parse(request.payload)
        return StatusResponse(_seam(holds=not request.vmpl and self._serves(request, asked.gctx))).pack()

    def _serves(self, request: Request, gctx: int) -> bool:
        """Whether the guest that asks is the migration agent of another."""
        target = self._context(gctx)
        return target is not None and target.report_id_ma == request.context.report_id

    def _context(self, gctx: int) -> GuestContext | None:
        try:
            return self._guests.in_state(gctx, SnpCommand.GUEST_STATUS)
        except PspError:
            return None


_ROOT_MDATA_FLAGS, _VALID = 0x1E0 + 0x20, 1 << 0
"""Flags of the root metadata entry in an exported context."""


def _whole(asked: ImportRequest) -> bool:
    return asked.exported_bytes == EXPORTED_BYTES and asked.exported_version == EXPORTED_VERSION


def _seam(*, holds: bool) -> Status:
    return Status.UNSUPPORTED if holds else Status.INVALID_PARAM
