"""Any sequence of commands, tampering and forged answers: statuses and states follow a small automaton."""

from __future__ import annotations

from device_bench import CONTEXT, OTHER_GCTX, PORT, RID, STATUS, STREAM, TDI_CONTEXT, new_bench
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.strategies import sampled_from
from toy_machine import GCTX, snp_guest

from psp import tsm
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.status import Status
from tio.ide import StreamState
from tio.tdisp import Tampering, TdiState

C, S = SnpCommand, Status


class DeviceLife(RuleBasedStateMachine):
    """The automaton's state beside the bench: what the firmware must believe, and what the device is."""

    @initialize()
    def switch_on(self) -> None:
        self.bench = new_bench()
        snp_guest(self.bench.machine, SnpGuestState.RUNNING)
        self.bench.another_guest()
        self.bench.lay_buffers()
        self.created = self.connected = self.broken = self.has_tdi = False
        self.owner = 0
        self.runs = False
        self.device = TdiState.CONFIG_UNLOCKED
        self.session = False
        """Whether the device still has the session that the firmware has."""

    # What the automaton says.

    def _asks(self, *, bound_ok: bool = True) -> int | None:
        """The refusal of a command that asks the device, None where it is asked."""
        if not self.created:
            return S.INVALID_DEV_CTX
        if not self.connected:
            return S.INVALID_DEV_STATE
        if self.broken:
            return S.ERR_IN_DEV_CONN
        return None if bound_ok else S.IN_USE

    def _of_tdi(self, gctx: int | None = None) -> int | None:
        if not self.created:
            return S.INVALID_DEV_CTX
        if not self.has_tdi:
            return S.INVALID_TDI_CTX
        if gctx is not None and not self.owner:
            return S.INVALID_TDI_STATE
        return S.INVALID_TDI if gctx is not None and self.owner != gctx else None

    def _outcome(self, refusal: int | None, status: int) -> bool:
        """Whether a command was carried out; where the device has no session any more, it is broken now."""
        if refusal is not None:
            assert status == refusal, (Status(status).name, Status(refusal).name)
            return False
        if not self.session:
            assert status == S.ERR_IN_DEV_CONN, Status(status).name
            self.broken = True
            return False
        return True

    # Commands.

    @rule()
    def create(self) -> None:
        if not self.created:
            self.bench.lend(CONTEXT)
        status = self.bench.ask(C.TIO_DEV_CREATE, tsm.DeviceCreate, device=CONTEXT, requester=RID, root_port=PORT)
        assert status == (S.IN_USE if self.created else S.SUCCESS)
        self.created = True

    @rule()
    def reclaim(self) -> None:
        status = self.bench.ask(C.TIO_DEV_RECLAIM, tsm.DeviceReclaim, device=CONTEXT)
        if not self.created:
            assert status == S.INVALID_DEV_CTX
        elif self.connected:
            assert status == S.INVALID_DEV_STATE
        elif self.has_tdi:
            assert status == S.RECLAIM_REQUIRED
        else:
            assert status == S.SUCCESS
            self.created = False

    @rule(forged=sampled_from([None, None, 1, 12]))
    def connect(self, forged: int | None) -> None:
        def change(at: int, answer: bytes) -> bytes:
            return answer[:12] + bytes((answer[12] ^ 1,)) + answer[13:] if at == forged else answer

        status = self.bench.connect(change)
        if not self.created:
            assert status == S.INVALID_DEV_CTX
            return
        if self.connected and not self.broken:
            assert status == S.INVALID_DEV_STATE
            return
        if self.owner:
            assert status == S.IN_USE
            return
        if self.device in {TdiState.CONFIG_LOCKED, TdiState.RUN}:
            self.device = TdiState.ERROR
        self.broken = False
        self.connected = self.session = forged is None
        assert (status == S.SUCCESS) == (forged is None)
        if self.connected:
            self.bench.enable_streams()

    @rule()
    def disconnect(self) -> None:
        status = self.bench.run(C.TIO_DEV_DISCONNECT, self.bench.order(tsm.DeviceOrder))
        if self._outcome(self._asks(bound_ok=not self.owner), status):
            assert status == S.SUCCESS
            self.connected = self.session = False

    @rule()
    def disconnect_by_force(self) -> None:
        status = self.bench.run(C.TIO_DEV_DISCONNECT, self.bench.order(tsm.DeviceOrder, flags=tsm.FORCE))
        if not self.created or not self.connected:
            assert status == (S.INVALID_DEV_STATE if self.created else S.INVALID_DEV_CTX)
            return
        assert status == S.SUCCESS
        self.connected = self.broken = self.runs = False
        self.owner = 0

    @rule()
    def create_tdi(self) -> None:
        if not self.has_tdi:
            self.bench.lend(TDI_CONTEXT)
        status = self.bench.create_tdi() if not self.has_tdi else self.bench.ask(
            C.TIO_TDI_CREATE, tsm.TdiCreate, device=CONTEXT, tdi=TDI_CONTEXT, interface_id=b"\0\1" + bytes(10)
        )  # fmt: skip
        refusal = self._asks()
        if refusal is None and self.has_tdi:
            refusal = S.IN_USE
        assert status == (refusal or S.SUCCESS)
        self.has_tdi = self.has_tdi or refusal is None

    @rule()
    def reclaim_tdi(self) -> None:
        status = self.bench.ask(C.TIO_TDI_RECLAIM, tsm.TdiReclaim, device=CONTEXT, tdi=TDI_CONTEXT)
        refusal = self._of_tdi() or (S.IN_USE if self.owner else None)
        assert status == (refusal or S.SUCCESS)
        self.has_tdi = self.has_tdi and refusal is not None

    @rule(gctx=sampled_from([GCTX, GCTX, OTHER_GCTX]))
    def bind(self, gctx: int) -> None:
        status = self.bench.bind(gctx=gctx)
        refusal = self._of_tdi() or self._asks() or (S.INVALID_TDI_STATE if self.owner else None)
        if self._outcome(refusal, status):
            assert status == S.SUCCESS
            self.owner, self.runs, self.device = gctx, False, TdiState.CONFIG_LOCKED

    @rule(gctx=sampled_from([GCTX, GCTX, OTHER_GCTX]))
    def run(self, gctx: int) -> None:
        status = self.bench.bind(gctx=gctx, run_flags=tsm.RUN)
        refusal = self._of_tdi() or self._asks() or self._of_tdi(gctx) or (S.INVALID_TDI_STATE if self.runs else None)
        if self._outcome(refusal, status):
            assert status == (S.SUCCESS if self.device is TdiState.CONFIG_LOCKED else S.SPDM_ERROR)
            if status == S.SUCCESS:
                self.runs, self.device = True, TdiState.RUN

    @rule(gctx=sampled_from([GCTX, GCTX, OTHER_GCTX]), flags=sampled_from([0, tsm.FORCE]))
    def unbind(self, gctx: int, flags: int) -> None:
        status = self.bench.unbind(gctx=gctx, flags=flags)
        refusal = self._of_tdi(gctx)
        if flags:
            assert status == (refusal or S.SUCCESS)
            if refusal is None:
                self.owner, self.runs = 0, False
        elif self._outcome(refusal or self._asks(), status):
            assert status == S.SUCCESS
            self.owner, self.runs, self.device = 0, False, TdiState.CONFIG_UNLOCKED

    @rule()
    def report(self) -> None:
        self.bench.lay_buffers()
        status = self.bench.run(C.TIO_TDI_REPORT, self.bench.tdi_order())
        if self._outcome(self._of_tdi(GCTX) or self._asks(), status):
            told = self.device in {TdiState.CONFIG_LOCKED, TdiState.RUN}
            assert status == (S.SUCCESS if told else S.SPDM_ERROR)

    @rule()
    def state(self) -> None:
        self.bench.lend(STATUS)
        status = self.bench.run(
            C.TIO_TDI_STATUS, self.bench.order(tsm.TdiStatus, tdi=TDI_CONTEXT, address=STATUS)
        )
        if self._outcome(self._of_tdi() or self._asks(), status):
            assert tsm.TdiStatusRecord.parse(self.bench.machine.bus.read(STATUS, 16)).state == self.device

    # What others do.

    @rule(event=sampled_from([Tampering.BAR, Tampering.FUNCTION_RESET]))
    def tamper(self, event: Tampering) -> None:
        self.bench.card.tdi.tamper(event)
        self._device_lost()

    @rule()
    def reset_of_the_mailbox_by_the_host(self) -> None:
        """GET_VERSION of its own: every session is over."""
        self.bench.device_says(bytes.fromhex("10840000"), secured=False)
        self.session = False
        self._device_lost()

    @rule()
    def forge(self) -> None:
        self.bench.lay_buffers()
        order = self.bench.order(tsm.DeviceMeasurements)
        status = self.bench.run(C.TIO_DEV_MEASUREMENTS, order, lambda _, answer: answer[:-9] + bytes(9))
        refusal = self._asks()
        assert status == (refusal or S.ERR_IN_DEV_CONN)
        self.broken = self.broken or refusal is None

    def _device_lost(self) -> None:
        if self.device in {TdiState.CONFIG_LOCKED, TdiState.RUN}:
            self.device = TdiState.ERROR

    # What holds always.

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        io = self.bench.trusted_io
        assert set(io.bindings) == ({RID} if self.owner else set())
        assert io.running == ({RID} if self.runs else set())
        assert self.bench.card.tdi.state is self.device
        if self.owner:
            assert io.bindings[RID].asid == {GCTX: 2, OTHER_GCTX: 3}[self.owner]
        if not self.connected:
            assert not io.ports[0, PORT].port.streams[STREAM].has_any_key()
        elif self.session and not self.broken:
            assert io.ports[0, PORT].port.streams[STREAM].state is StreamState.SECURE


TestDeviceLife = DeviceLife.TestCase
TestDeviceLife.settings = settings(max_examples=7, stateful_step_count=30, deadline=None)
