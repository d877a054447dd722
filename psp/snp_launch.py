"""SNP_LAUNCH_START, _UPDATE and _FINISH (SEV-SNP firmware ABI, sections 8.16 to 8.18)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.cpuid_check import corrected
from psp.guest_context import (
    IMI_EN,
    MEMORY_KEY_BYTES,
    NO_MIGRATION_AGENT,
    OEK_BYTES,
    REPORT_ID_BYTES,
    VCEK_DISABLED,
    VMPCK_BYTES,
    VMPCKS,
    VMRK_BYTES,
    GuestContext,
    SnpGuestState,
)
from psp.host_memory import HostMemory
from psp.id_block import IdAuth, IdBlock, checked_identity
from psp.installed_firmware import InstalledFirmware
from psp.launch_digest import LaunchDigest, PageType
from psp.launch_pages import LAUNCH_PAGES
from psp.mitigations import Mitigations
from psp.page_state import PageState, page_state
from psp.policy import SnpPolicy
from psp.register_protection import NONCE_BYTES, is_asked_for, with_nonce
from psp.secure_tsc import scale_of, with_clock
from psp.snp_guests import SnpGuests
from psp.snp_pages import entry_of_page
from psp.snp_policy import SnpPolicyCheck
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus

_FINISH_FLAGS = (buffers.SNP_FINISH_ID_BLOCK, buffers.SNP_FINISH_AUTHOR_KEY)


class SnpLaunch:
    """Handlers of the launch commands."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        guests: SnpGuests,
        policies: SnpPolicyCheck,
        random: Callable[[str, int], bytes],
        firmware: InstalledFirmware,
        mitigations: Mitigations,
    ) -> None:
        self._bus = bus
        self._memory = memory
        self._guests = guests
        self._policies = policies
        self._random = random
        self._firmware = firmware
        self._mitigations = mitigations

    def start(self, start: buffers.SnpLaunchStart) -> None:
        """SNP_LAUNCH_START."""
        context = self._guests.in_state(start.gctx, SnpCommand.LAUNCH_START)
        if start.flags & ~(buffers.SNP_START_MA | buffers.SNP_START_IMI):
            raise PspError(Status.INVALID_PARAM)
        agent = self._agent(start)
        scale = scale_of(start.desired_tsc_khz, self._bus.machine_facts.tsc_khz) if start.desired_tsc_khz else 0
        self._policies.check(start.policy)
        started = replace(
            context,
            policy=start.policy,
            gosvw=start.gosvw,
            memory_key=self._random("memory key", self._bus.memory_key_bytes).ljust(MEMORY_KEY_BYTES, b"\0"),
            vmpcks=b"".join(self._random("VMPCK", VMPCK_BYTES) for _ in range(VMPCKS)),
            oek=self._random("OEK", OEK_BYTES),
            report_id=self._random("report id", REPORT_ID_BYTES),
            report_id_ma=NO_MIGRATION_AGENT if agent is None else agent.report_id,
            ma_gctx=start.ma_gctx,
            vmrk=self._random("VMRK", VMRK_BYTES) if agent is None else bytes(VMRK_BYTES),
            flags=IMI_EN if start.flags & buffers.SNP_START_IMI else 0,
            tsc_scale=scale,
            launch_tcb=self._firmware.launch_tcb,
            launch_mitigations=self._mitigations.verified,
            state=SnpGuestState.LAUNCH,
        )
        self._guests.pages.write(start.gctx, started)

    def _agent(self, start: buffers.SnpLaunchStart) -> GuestContext | None:
        """The migration agent that a launch names. Raises PspError.

        INVALID_PARAM for one that is named and not wanted, INVALID_GUEST and INVALID_GUEST_STATE for one that does not
        run, POLICY_FAILURE unless the guest allows one, and for one that could itself be moved.
        """
        if not start.flags & buffers.SNP_START_MA:
            if start.ma_gctx:
                raise PspError(Status.INVALID_PARAM)
            return None
        agent = self._guests.in_state(start.ma_gctx, SnpCommand.GUEST_REQUEST)
        if not start.policy & SnpPolicy.MIGRATE_MA or agent.policy & SnpPolicy.MIGRATE_MA:
            raise PspError(Status.POLICY_FAILURE)
        return agent

    def update(self, update: buffers.SnpLaunchUpdate) -> None:
        """SNP_LAUNCH_UPDATE."""
        context = self._guests.in_state(update.gctx, SnpCommand.LAUNCH_UPDATE)
        asid = self._guests.active_asid(context)
        entry = entry_of_page(self._bus, self._memory.pages, update.address)
        if page_state(entry) is not PageState.PRE_GUEST:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.asid != asid:
            raise PspError(Status.INVALID_PAGE_OWNER)
        if entry.large or update.large:
            # Sizes must agree; whether real firmware takes 2 MiB, and how it measures them, is not known.
            raise PspError(Status.INVALID_PAGE_SIZE)
        kind = LAUNCH_PAGES.get(update.page_type)
        if kind is None or (update.imi and not context.flags & IMI_EN) or not update.is_well_formed:
            raise PspError(Status.INVALID_PARAM)
        page = self._bus.read(update.address, PAGE_BYTES)
        contents = kind.contents(context, page, self._bus.machine_facts.cpuid_1_eax)
        if kind.page_type is PageType.CPUID and (allowed := corrected(page, self._bus.cpuid_facts)) != page:
            self._bus.write(update.address, allowed)
            raise PspError(Status.INVALID_PARAM)
        permissions = update.vmpl_permissions
        digest, image = LaunchDigest(context.digest), LaunchDigest(context.imd)
        for one in (digest, image) if update.imi else (digest,):
            one.update(kind.page_type, entry.gpa, contents, vmpl_permissions=permissions, imi=update.imi)
        if kind.page_type is PageType.VMSA:
            contents = self._finished(contents, context)
        if contents is page:
            self._bus.encrypt_in_place(update.address, PAGE_BYTES, asid)
        else:
            self._bus.write_guest(update.address, contents, asid)
        self._bus.rmp_set(
            update.address,
            replace(
                entry,
                immutable=False,
                validated=True,
                vmsa=kind.page_type is PageType.VMSA,
                vmpl_permissions=(entry.vmpl_permissions[0], *permissions),
            ),
        )
        self._guests.pages.write(update.gctx, replace(context, digest=digest.value, imd=image.value))

    def _finished(self, save_area: bytes, context: GuestContext) -> bytes:
        """A save area as its guest will find it; it is measured as the host laid it."""
        if context.tsc_scale:
            save_area = with_clock(save_area, context)
        if is_asked_for(save_area):
            save_area = with_nonce(save_area, self._random("register nonce", NONCE_BYTES))
        return save_area

    def finish(self, finish: buffers.SnpLaunchFinish) -> None:
        """SNP_LAUNCH_FINISH."""
        context = self._guests.in_state(finish.gctx, SnpCommand.LAUNCH_FINISH)
        with_block, with_author = (finish.flags & flag for flag in _FINISH_FLAGS)
        known = sum(_FINISH_FLAGS) | buffers.SNP_FINISH_NO_VCEK
        if finish.flags & ~known or (with_author and not with_block):
            raise PspError(Status.INVALID_PARAM)
        if with_block:
            block = IdBlock.parse(self._memory.read(finish.id_block_address, IdBlock.SIZE))
            auth = IdAuth.parse(self._memory.read(finish.id_auth_address, IdAuth.SIZE))
            identity = checked_identity(block, auth, context.digest, context.policy, with_author=bool(with_author))
            context = replace(
                context,
                family_id=identity.family_id,
                image_id=identity.image_id,
                guest_svn=identity.guest_svn,
                id_key_digest=identity.id_key_digest,
                author_key_digest=identity.author_key_digest,
            )
        if finish.flags & buffers.SNP_FINISH_NO_VCEK:
            context = replace(context, flags=context.flags | VCEK_DISABLED)
        running = replace(context, host_data=finish.host_data, state=SnpGuestState.RUNNING)
        self._guests.pages.write(finish.gctx, running)
