"""Guests of both interfaces come and go in any order, beside a small model that keeps what the sheets promise."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from owner import KEYS, Owner
from toy_machine import FIRMWARE, PAGE, POLICY, Machine, context, new_machine, returning

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.launch_digest import PageType
from psp.legacy_guest import NO_KEYS
from psp.secret_packet import pack_secret
from psp.status import Status
from psp.system_bus import RmpEntry

CONTEXTS = (0x60_0000, 0x60_1000, 0x60_2000)
HANDLES = (1, 2, 3)
LAUNCH_PAGE = 0x20_0000
OF_THE_PLATFORM = {"DRAM", "drawn", "handles", "legacy.keys"}
ASIDS = st.integers(0, 9)
"""1 to 4 are for SNP, 5 to 8 for SEV."""


@dataclass
class Guest:
    """What the model knows of a guest; states as the interface numbers them."""

    state: int
    asid: int = 0


class Asids:
    """ASIDs of both interfaces: free, owned, given up, written back."""

    def __init__(self) -> None:
        self.owned: set[int] = set()
        self.waiting: dict[int, bool] = dict.fromkeys(range(10), False)
        """ASIDs that no DF_FLUSH has cleaned yet, and whether WBINVD came since."""

    def refusal(self, asid: int) -> Status | None:
        if asid in self.owned:
            return Status.ASID_OWNED
        if asid in self.waiting:
            return Status.DFFLUSH_REQUIRED if self.waiting[asid] else Status.WBINVD_REQUIRED
        return None

    def wbinvd(self) -> None:
        self.waiting = dict.fromkeys(self.waiting, True)

    def give_up(self, asid: int) -> None:
        if asid:
            self.owned.discard(asid)
            self.waiting[asid] = False

    def flush(self) -> Status:
        if not all(self.waiting.values()):
            return Status.WBINVD_REQUIRED
        self.waiting.clear()
        return Status.SUCCESS


def machine_without_guests() -> Machine:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == 0
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == 0
    return machine


def left_by_guests(machine: Machine) -> dict[str, object]:
    """What guests could leave, flushed; new platform keys, counters and what the host lent firmware are none of it."""
    machine.flush(SnpCommand.DF_FLUSH)
    state = machine.snapshot()
    pages: dict[int, bytes] = state["DRAM"]  # type: ignore[assignment]
    kept = {name: one for name, one in state.items() if name not in OF_THE_PLATFORM}
    kept["RMP"] = {page: entry for page, entry in machine.bus.rmp.items() if entry != FIRMWARE}
    return {**kept, "contexts": [pages.get(gctx // PAGE) for gctx in CONTEXTS]}


class Guests(RuleBasedStateMachine):
    """Every command's status follows from the model, and so does who holds a key."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = machine_without_guests()
        self.snp: dict[int, Guest] = {}
        self.sev: dict[int, Guest] = {}
        self.asids = Asids()
        self.last_handle = 0

    def teardown(self) -> None:
        """Whatever states guests were in: when they are gone, firmware and tables are as before they came."""
        for gctx in list(self.snp):
            self.decommission(gctx)
        for handle in list(self.sev):
            for command in (LegacyCommand.DEACTIVATE, LegacyCommand.DECOMMISSION):
                assert self._sev_call(command, handle) == Status.SUCCESS
        assert left_by_guests(self.machine) == left_by_guests(machine_without_guests())

    @rule()
    def wbinvd(self) -> None:
        self.machine.bus.wbinvds += 1
        self.asids.wbinvd()

    @rule(command=st.sampled_from([SnpCommand.DF_FLUSH, LegacyCommand.DF_FLUSH]))
    def df_flush(self, command: int) -> None:
        assert self.machine.call(command) == self.asids.flush()

    @rule()
    def flush_all(self) -> None:
        self.wbinvd()
        self.df_flush(SnpCommand.DF_FLUSH)

    # SNP.

    @rule(gctx=st.sampled_from(CONTEXTS))
    def create(self, gctx: int) -> None:
        if gctx not in self.snp:
            self.machine.bus.rmp_set(gctx, FIRMWARE)
        status = self.machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(gctx).pack())
        assert status == (Status.INVALID_PAGE_STATE if gctx in self.snp else Status.SUCCESS)
        self.snp.setdefault(gctx, Guest(0))

    @rule(gctx=st.sampled_from(CONTEXTS))
    def start(self, gctx: int) -> None:
        status = self.machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(gctx, POLICY).pack())
        assert status == self._snp_expected(gctx, {0}, 1)

    @rule(gctx=st.sampled_from(CONTEXTS), asid=ASIDS)
    def activate(self, gctx: int, asid: int) -> None:
        status = self.machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(gctx, asid).pack())
        guest, asids = self.snp.get(gctx), self.asids
        expected: Status | None = None
        if guest is None or guest.state == 0:
            expected = self._snp_expected(gctx, {1, 2})
        elif not 1 <= asid <= 4:
            expected = Status.INVALID_ASID
        elif asid in asids.owned:
            expected = Status.ASID_OWNED
        elif guest.asid:
            expected = Status.ACTIVE
        else:
            expected = asids.refusal(asid) or Status.SUCCESS
        assert status == expected
        if expected is Status.SUCCESS and guest is not None:
            guest.asid = asid
            asids.owned.add(asid)

    @rule(gctx=st.sampled_from(CONTEXTS), page_type=st.sampled_from(PageType))
    def update(self, gctx: int, page_type: PageType) -> None:
        guest = self.snp.get(gctx)
        owner = guest.asid if guest is not None and guest.asid else 1
        self.machine.bus.write(LAUNCH_PAGE, bytes(PAGE))
        self.machine.bus.rmp_set(LAUNCH_PAGE, RmpEntry(assigned=True, immutable=True, asid=owner, gpa=0x1000))
        update = buffers.SnpLaunchUpdate.of(gctx, page_type, LAUNCH_PAGE)
        status = self.machine.call(SnpCommand.LAUNCH_UPDATE, update.pack())
        expected = self._snp_expected(gctx, {1})
        if expected is Status.SUCCESS and guest is not None and not guest.asid:
            expected = Status.INACTIVE
        assert status == expected
        self.machine.bus.rmp.pop(LAUNCH_PAGE // PAGE)

    @rule(gctx=st.sampled_from(CONTEXTS))
    def finish(self, gctx: int) -> None:
        status = self.machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(gctx).pack())
        assert status == self._snp_expected(gctx, {1}, 2)

    @rule(gctx=st.sampled_from(CONTEXTS))
    def decommission(self, gctx: int) -> None:
        status = self.machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(gctx).pack())
        assert status == self._snp_expected(gctx, {0, 1, 2})
        if gctx in self.snp:
            self.asids.give_up(self.snp.pop(gctx).asid)

    def _snp_expected(self, gctx: int, states: set[int], after: int | None = None) -> Status:
        guest = self.snp.get(gctx)
        if guest is None:
            return Status.INVALID_GUEST
        if guest.state not in states:
            return Status.INVALID_GUEST_STATE
        guest.state = guest.state if after is None else after
        return Status.SUCCESS

    # SEV.

    @rule()
    def sev_start(self) -> None:
        if len(self.sev) < len(HANDLES):
            status, answer = returning(self.machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack())
            self.last_handle += 1
            assert (status, buffers.LaunchStart.parse(answer).handle) == (Status.SUCCESS, self.last_handle)
            self.sev[self.last_handle] = Guest(1)

    @rule(back=st.integers(0, 3), asid=ASIDS)
    def sev_activate(self, back: int, asid: int) -> None:
        handle, asids = self.last_handle - back, self.asids
        status = self._sev_call(LegacyCommand.ACTIVATE, handle, asid.to_bytes(4, "little"))
        guest = self.sev.get(handle)
        expected = self._sev_expected(handle, {1, 2, 3})
        if expected is Status.SUCCESS and guest is not None:
            if guest.asid:
                expected = Status.ACTIVE
            elif not 5 <= asid <= 8:
                expected = Status.INVALID_ASID
            else:
                expected = asids.refusal(asid) or Status.SUCCESS
            if expected is Status.SUCCESS:
                guest.asid = asid
                asids.owned.add(asid)
        assert status == expected

    @rule(back=st.integers(0, 3))
    def sev_deactivate(self, back: int) -> None:
        handle = self.last_handle - back
        assert self._sev_call(LegacyCommand.DEACTIVATE, handle) == self._sev_expected(handle, {1, 2, 3})
        if handle in self.sev:
            self.asids.give_up(self.sev[handle].asid)
            self.sev[handle].asid = 0

    @rule(back=st.integers(0, 3))
    def sev_decommission(self, back: int) -> None:
        handle = self.last_handle - back
        expected = self._sev_expected(handle, {1, 2, 3})
        if handle in self.sev and self.sev[handle].asid:
            expected = Status.ACTIVE
        assert self._sev_call(LegacyCommand.DECOMMISSION, handle) == expected
        if expected is Status.SUCCESS:
            del self.sev[handle]

    @rule(back=st.integers(0, 3))
    def sev_update(self, back: int) -> None:
        handle = self.last_handle - back
        self.machine.bus.write(0x1000, buffers.LaunchUpdateData(max(handle, 0), LAUNCH_PAGE, 64).pack())
        self.machine.bus.rmp_set(LAUNCH_PAGE, FIRMWARE)
        status = self.machine.psp.submit(LegacyCommand.LAUNCH_UPDATE_DATA, 0x1000)
        self.machine.bus.rmp.pop(LAUNCH_PAGE // PAGE)
        expected = self._sev_expected(handle, {1})
        if expected is Status.SUCCESS and not self.sev[handle].asid:
            expected = Status.INACTIVE
        assert status == expected

    @rule(back=st.integers(0, 3))
    def sev_measure(self, back: int) -> None:
        handle = self.last_handle - back
        self.machine.bus.rmp_set(0x40_0000, FIRMWARE)
        measure = buffers.LaunchMeasure(max(handle, 0), 0x40_0000, 48).pack()
        status, _ = returning(self.machine, LegacyCommand.LAUNCH_MEASURE, measure)
        assert status == self._sev_expected(handle, {1}, 2)

    @rule(back=st.integers(0, 3))
    def sev_finish(self, back: int) -> None:
        handle = self.last_handle - back
        assert self._sev_call(LegacyCommand.LAUNCH_FINISH, handle) == self._sev_expected(handle, {2}, 3)

    @rule(back=st.integers(0, 3), honest=st.booleans())
    def sev_secret(self, back: int, honest: bool) -> None:
        """A packet of the guest's owner, or of somebody who knows another measurement."""
        handle = self.last_handle - back
        guest = self.machine.psp.legacy.guests.get(handle)
        transport, measure = (guest.transport, guest.measure) if guest else (NO_KEYS, bytes(32))
        header, packet = pack_secret(transport, b"s" * 64, measure if honest else b"?" * 32, bytes(16), (1, 55))
        self.machine.bus.write(0x70_0000, header.pack() + packet)
        secret = buffers.LaunchSecret(max(handle, 0), 0x70_0000, 0x34, LAUNCH_PAGE, 64, 0x70_0034, 64).pack()
        self.machine.bus.rmp_set(LAUNCH_PAGE, FIRMWARE)
        status = self.machine.call(LegacyCommand.LAUNCH_SECRET, secret)
        self.machine.bus.rmp.pop(LAUNCH_PAGE // PAGE)
        expected = self._sev_expected(handle, {2})
        if expected is Status.SUCCESS and not self.sev[handle].asid:
            expected = Status.INACTIVE
        if expected is Status.SUCCESS and not honest:
            expected = Status.BAD_MEASUREMENT
        assert status == expected

    @rule(policy=st.sampled_from([0, 1]), said=st.sampled_from([0, 1]))
    def sev_start_with_a_session(self, policy: int, said: int) -> None:
        """The host says which policy the owner's session is for, truly or not."""
        if len(self.sev) == len(HANDLES):
            return
        start = Owner(self.machine, policy).start(said)
        status, answer = returning(self.machine, LegacyCommand.LAUNCH_START, start.pack())
        assert status == (Status.SUCCESS if policy == said else Status.BAD_MEASUREMENT)
        if policy == said:
            self.last_handle += 1
            assert buffers.LaunchStart.parse(answer).handle == self.last_handle
            assert self.machine.psp.legacy.guests[self.last_handle].transport == KEYS
            self.sev[self.last_handle] = Guest(1)

    @rule(command=st.sampled_from([LegacyCommand.PEK_GEN, LegacyCommand.PDH_GEN]))
    def sev_new_keys(self, command: LegacyCommand) -> None:
        forbidden = command == LegacyCommand.PEK_GEN and self.sev
        assert self.machine.call(command) == (Status.INVALID_PLATFORM_STATE if forbidden else Status.SUCCESS)

    def _sev_call(self, command: LegacyCommand, handle: int, rest: bytes = b"") -> int:
        return self.machine.call(command, max(handle, 0).to_bytes(4, "little") + rest)

    def _sev_expected(self, handle: int, states: set[int], after: int | None = None) -> Status:
        if not self.sev:
            return Status.INVALID_PLATFORM_STATE
        guest = self.sev.get(handle)
        if guest is None:
            return Status.INVALID_GUEST
        if guest.state not in states:
            return Status.INVALID_GUEST_STATE
        guest.state = guest.state if after is None else after
        return Status.SUCCESS

    # What always holds.

    @invariant()
    def firmware_and_model_agree(self) -> None:
        psp = self.machine.psp
        assert {
            gctx: Guest(one.state, one.asid)
            for gctx in psp.snp.guests.pages.spas
            for one in [context(self.machine, gctx)]
        } == self.snp
        assert {handle: Guest(one.state, one.asid) for handle, one in psp.legacy.guests.items()} == self.sev
        assert psp.legacy.state == (2 if self.sev else 1)

    @invariant()
    def only_active_guests_have_keys_and_no_two_share_one(self) -> None:
        active = [guest.asid for guest in (*self.snp.values(), *self.sev.values()) if guest.asid]
        assert sorted(self.machine.bus.keys) == sorted(active)
        assert len(set(self.machine.bus.keys.values())) == len(active)


Guests.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestGuests = Guests.TestCase
