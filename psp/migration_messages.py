"""Messages of migration agents: a guest leaves a host, comes to another, or hands itself over (SNP ABI, 7.5 to 7.9).

An agent is a guest that another was launched with, or that took it in. From VMPL0 it may

    EXPORT   have that guest's context. The guest is decommissioned in the same moment, so that firmware never leaves
             two of it; unless it is to run on (IMI_EN), and then no page that it has out can come in elsewhere.
    IMPORT   make a context in which nothing was launched that guest. It gets another report id, and this agent.
    ABSORB   have a guest of its own that was launched with the same initial migration image become that guest.
    VMRK     give its guest the root of keys that moves with it.

A guest without an agent may export itself, and absorb for itself (ABSORB_NOMA). Who may not ask, and whatever names a
guest or a context that it does not fit, is answered INVALID_PARAM: no text has the order of the checks, or more of
their statuses than BAD_MEASUREMENT for another image. POLICY_FAILURE is the laboratory's: for a policy that the
platform cannot meet, that the image was not launched under, or that lets nobody move a guest which would absorb for
itself. So is UNSUPPORTED for guests with Secure TSC, whose clocks begin with their host's. The exported context is what
an agent says, and is looked at as any bad input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout, at, secret_at
from psp.commands import SnpCommand
from psp.exported_context import EXPORTED_BYTES, EXPORTED_VERSION, ExportedContext
from psp.guest_context import (
    DIGEST_BYTES,
    IMI_EN,
    MEMORY_KEY_BYTES,
    NO_MIGRATION_AGENT,
    REPORT_ID_BYTES,
    VMRK_BYTES,
    GuestContext,
    SnpGuestState,
    counted,
)
from psp.guest_message import MessageType
from psp.guest_requests import MessageRow, Request
from psp.installed_firmware import InstalledFirmware, tcb_at_most
from psp.page_swap import MdataEntry
from psp.policy import SnpPolicy
from psp.snp_guests import SnpGuests
from psp.snp_policy import SnpPolicyCheck
from psp.status import PspError, Status
from psp.system_bus import SystemBus

EXPORT_IMI_EN = 1 << 0
"""Flag of MSG_EXPORT_REQ: the guest runs on."""
_LAUNCHED = frozenset({SnpGuestState.LAUNCH, SnpGuestState.RUNNING})


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
    exported: bytes = secret_at(0x20, EXPORTED_BYTES)


@dataclass(frozen=True, slots=True)
class VmrkRequest(ByteLayout):
    """MSG_VMRK_REQ."""

    SIZE: ClassVar[int] = 0x40
    gctx: int = at(0x00, 8)
    vmrk: bytes = secret_at(0x20, VMRK_BYTES)


@dataclass(frozen=True, slots=True)
class StatusResponse(ByteLayout):
    """The response to all but an export."""

    SIZE: ClassVar[int] = 0x10
    status: int = at(0x00, 4)


class MigrationMessages:
    """Answers them."""

    def __init__(
        self,
        bus: SystemBus,
        guests: SnpGuests,
        policies: SnpPolicyCheck,
        random: Callable[[str, int], bytes],
        firmware: InstalledFirmware,
    ) -> None:
        self.export_wants_imi = False
        """Whether a guest without an initial migration image cannot be exported to run on. Firmware that looks at the
        image then, too, has nothing to compare it with: what it demands is that there is one (BAD_MEASUREMENT)."""
        self.absorbing_alone_wants_leave = True
        """Whether a guest absorbs for itself only if its policy lets a migration agent move it. What it absorbs it may
        have made up: without, any guest could have reports with another's measurement, and no relying party would see
        it. What firmware does against that is not published."""
        self.export_decommissions = True
        """Whether a guest that is exported for good ends here; False shows what that is good for."""
        self._bus = bus
        self._guests = guests
        self._policies = policies
        self._random = random
        self._firmware = firmware
        steps: Mapping[MessageType, tuple[type[ByteLayout], Callable[[Request], None]]] = {
            MessageType.IMPORT_REQ: (ImportRequest, self._import),
            MessageType.ABSORB_REQ: (ImportRequest, self._absorb),
            MessageType.VMRK_REQ: (VmrkRequest, self._vmrk),
            MessageType.ABSORB_NOMA_REQ: (ImportRequest, self._absorb_alone),
        }
        self.rows: Mapping[int, MessageRow] = {
            MessageType.EXPORT_REQ: MessageRow({1: ExportRequest.SIZE}, self._export, changes_contexts=True),
            **{
                kind: MessageRow({1: layout.SIZE}, _answering(step), changes_contexts=True)
                for kind, (layout, step) in steps.items()
            },
        }

    def _export(self, request: Request) -> bytes:
        try:
            exported = self._exported(request, ExportRequest.parse(request.payload))
        except PspError as refused:
            return ExportResponse(refused.status).pack()
        return ExportResponse(Status.SUCCESS, EXPORTED_BYTES, EXPORTED_VERSION).pack() + exported.pack()

    def _exported(self, request: Request, asked: ExportRequest) -> ExportedContext:
        _demand(not asked.flags & ~EXPORT_IMI_EN)
        live, itself = bool(asked.flags & EXPORT_IMI_EN), asked.gctx == request.gctx
        if itself:
            _demand(not request.vmpl and request.context.report_id_ma == NO_MIGRATION_AGENT)
            # The number of the answer counts, wherever the guest goes on.
            guest = replace(request.context, message_count_0=request.context.message_count_0 + 2)
        else:
            guest = self._served(request, asked.gctx, frozenset({SnpGuestState.RUNNING}))
        if guest.tsc_scale:
            raise PspError(Status.UNSUPPORTED)
        if live and self.export_wants_imi and guest.imd == bytes(DIGEST_BYTES):
            raise PspError(Status.BAD_MEASUREMENT)
        if not live and self.export_decommissions:
            self._guests.decommission(buffers.GuestContextPage(asked.gctx))
        return ExportedContext.of(guest, live=live)

    def _import(self, request: Request) -> None:
        asked = ImportRequest.parse(request.payload)
        found = self._brought(request, asked)
        target = self._context(asked.gctx)
        _demand(target is not None and target.state == SnpGuestState.INIT)
        _demand(MdataEntry.parse(found.root_mdata).flags & MdataEntry.VALID)
        if not found.policy & SnpPolicy.MIGRATE_MA or request.context.policy & SnpPolicy.MIGRATE_MA:
            raise PspError(Status.POLICY_FAILURE)
        self._policies.check(found.policy)
        arrived = replace(
            found.identity(GuestContext()),
            memory_key=self._random("memory key", self._bus.memory_key_bytes).ljust(MEMORY_KEY_BYTES, b"\0"),
            oek=found.oek,
            oek_iv_count=found.oek_iv_count,
            root_mdata=found.root_mdata,
            report_id=self._random("report id", REPORT_ID_BYTES),
            report_id_ma=request.context.report_id,
            ma_gctx=request.gctx,
        )
        self._guests.pages.write(asked.gctx, arrived)

    def _absorb(self, request: Request) -> None:
        asked = ImportRequest.parse(request.payload)
        target = self._served(request, asked.gctx, frozenset({SnpGuestState.RUNNING}))
        self._take_in(request, asked, asked.gctx, target)

    def _absorb_alone(self, request: Request) -> None:
        asked, target = ImportRequest.parse(request.payload), request.context
        _demand(not asked.gctx and target.report_id_ma == NO_MIGRATION_AGENT)
        if self.absorbing_alone_wants_leave and not target.policy & SnpPolicy.MIGRATE_MA:
            raise PspError(Status.POLICY_FAILURE)
        self._take_in(request, asked, request.gctx, target)

    def _take_in(self, request: Request, asked: ImportRequest, gctx: int, target: GuestContext) -> None:
        """Have a guest become another; its memory, and where it keeps pages that are out, are its own."""
        found = self._brought(request, asked)
        _demand(target.flags & IMI_EN)
        if found.imd != target.imd:
            raise PspError(Status.BAD_MEASUREMENT)
        if found.policy != target.policy:
            # A host chose under which policy the image was launched, and could read all that it becomes.
            raise PspError(Status.POLICY_FAILURE)
        became = replace(found.identity(target), report_id=found.report_id)
        page = became.pack()
        for vmpl, count in enumerate(target.message_counts):
            if target.vmpck(vmpl) == became.vmpck(vmpl):
                page = counted(page, vmpl, count)
        self._guests.pages.write_packed(gctx, page)

    def _vmrk(self, request: Request) -> None:
        asked = VmrkRequest.parse(request.payload)
        # Keys of zeros mean that there is none.
        _demand(VmrkRequest.reserved_is_zero(request.payload) and any(asked.vmrk))
        target = self._served(request, asked.gctx, _LAUNCHED)
        self._guests.pages.write(asked.gctx, replace(target, vmrk=asked.vmrk))

    def _served(self, request: Request, gctx: int, states: frozenset[SnpGuestState]) -> GuestContext:
        """A guest in one of some states, whose migration agent asks from VMPL0. Raises PspError(INVALID_PARAM)."""
        target = self._context(gctx)
        agent = request.gctx, request.context.report_id
        if target is None or request.vmpl or (target.ma_gctx, target.report_id_ma) != agent:
            raise PspError(Status.INVALID_PARAM)
        _demand(target.state in states)
        return target

    def _brought(self, request: Request, asked: ImportRequest) -> ExportedContext:
        """A context that firmware may have exported. Raises PspError(INVALID_PARAM) for one that none would."""
        _demand(not request.vmpl and ImportRequest.reserved_is_zero(request.payload))
        _demand((asked.exported_bytes, asked.exported_version) == (EXPORTED_BYTES, EXPORTED_VERSION))
        found = ExportedContext.parse(asked.exported)
        _demand(ExportedContext.reserved_is_zero(asked.exported) and found.is_consistent)
        _demand(found.state == SnpGuestState.RUNNING)
        # Reports say that no guest was launched by newer firmware than runs.
        _demand(tcb_at_most(found.launch_tcb, self._firmware.current.tcb))
        return found

    def _context(self, gctx: int) -> GuestContext | None:
        try:
            return self._guests.in_state(gctx, SnpCommand.GUEST_STATUS)
        except PspError:
            return None


def _answering(step: Callable[[Request], None]) -> Callable[[Request], bytes]:
    def answer(request: Request) -> bytes:
        try:
            step(request)
        except PspError as refused:
            return StatusResponse(refused.status).pack()
        return StatusResponse(Status.SUCCESS).pack()

    return answer


def _demand(holds: object) -> None:
    if not holds:
        raise PspError(Status.INVALID_PARAM)
