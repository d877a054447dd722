"""Random histories of one TDI against an automaton written from the specification's table of transitions."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tdi_device import OTHER_SESSION, RANGES, SESSION, STREAM, Device

from tio.tdisp import LockFlags, LockRequest, Request, Tampering, TdiState
from tio.tdisp.messages import report_request

UNLOCKED, LOCKED, RUN, ERROR = TdiState
CONDITIONAL = {Tampering.MSIX: LockFlags.LOCK_MSIX, Tampering.FIRMWARE_UPDATE: LockFlags.NO_FW_UPDATE}
REDIRECTED = LockFlags.BIND_P2P | LockFlags.ALL_REQUEST_REDIRECT
FLAGS = st.sampled_from((0, LockFlags.LOCK_MSIX, LockFlags.NO_FW_UPDATE, LockFlags.BIND_P2P, REDIRECTED, 0x20))
SESSIONS = st.sampled_from((SESSION, SESSION, SESSION, OTHER_SESSION))


class OneTdi(RuleBasedStateMachine):
    """The automaton: state, who locked with what, which nonce is good, whose the keys are, and if a peer is bound."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.state = UNLOCKED
        self.owner = 0
        self.flags = 0
        self.nonce: bytes | None = None
        self.keys_of = 0
        self.bound = False
        self.nonces: set[bytes] = set()

    @initialize()
    def programmed(self) -> None:
        self.program_keys(SESSION)

    def refused(self, code: Request, payload: bytes, session: int) -> bool:
        return self.device.refusal(code, payload, session) is not None

    def mine(self, session: int) -> bool:
        return self.state is UNLOCKED or self.owner == session or self.state is ERROR

    @rule(session=SESSIONS, flags=FLAGS)
    def lock_and_start(self, session: int, flags: int) -> None:
        self.lock(session, flags)
        self.start(session, old=False)

    @rule(session=SESSIONS, flags=FLAGS)
    def only_lock(self, session: int, flags: int) -> None:
        self.lock(session, flags)

    @rule(session=SESSIONS, old=st.booleans())
    def only_start(self, session: int, old: bool) -> None:
        self.start(session, old)

    def lock(self, session: int, flags: int) -> None:
        legal = self.state is UNLOCKED and flags != 0x20 and self.keys_of == session
        if not legal:
            assert self.refused(Request.LOCK_INTERFACE_REQUEST, LockRequest(flags, STREAM).pack(), session)
            return
        self.nonce = self.device.lock(flags, session=session)
        assert self.nonce not in self.nonces
        self.nonces.add(self.nonce)
        self.state, self.owner, self.flags = LOCKED, session, flags

    def start(self, session: int, old: bool) -> None:
        nonce = bytes(32) if old or self.nonce is None else self.nonce
        legal = self.state is LOCKED and self.owner == session and nonce == self.nonce
        assert self.refused(Request.START_INTERFACE_REQUEST, nonce, session) is not legal
        if legal:
            self.state, self.nonce, self.bound = RUN, None, False

    @rule(session=SESSIONS)
    def stop(self, session: int) -> None:
        assert self.refused(Request.STOP_INTERFACE_REQUEST, b"", session) is not self.mine(session)
        if self.mine(session):
            self.state, self.nonce = UNLOCKED, None

    @rule(session=SESSIONS)
    def report(self, session: int) -> None:
        legal = self.state in (LOCKED, RUN) and self.owner == session
        assert self.refused(Request.GET_DEVICE_INTERFACE_REPORT, report_request(0, 16), session) is not legal

    @rule(session=SESSIONS)
    def set_attribute(self, session: int) -> None:
        legal = self.state is RUN and self.owner == session
        assert self.refused(Request.SET_MMIO_ATTRIBUTE_REQUEST, RANGES[3].pack(), session) is not legal

    @rule(session=SESSIONS, bind=st.booleans())
    def ask_for_a_peers_stream(self, session: int, bind: bool) -> None:
        """The stream of the lock, which has keys, stands for it."""
        legal = self.state is RUN and self.owner == session
        legal = legal and (self.flags == LockFlags.BIND_P2P and not self.bound if bind else self.bound)
        code = Request.BIND_P2P_STREAM_REQUEST if bind else Request.UNBIND_P2P_STREAM_REQUEST
        assert self.refused(code, bytes((STREAM,)), session) is not legal
        if legal:
            self.bound = bind

    @rule(event=st.sampled_from(tuple(Tampering)))
    def tamper(self, event: Tampering) -> None:
        self.device.tdi.tamper(event)
        needed = CONDITIONAL.get(event, 0)
        if self.state in (LOCKED, RUN) and (not needed or self.flags & needed):
            self.state, self.nonce = ERROR, None

    @rule(session=SESSIONS)
    def program(self, session: int) -> None:
        self.program_keys(session)

    def program_keys(self, session: int) -> None:
        """Of a stream that has another session's keys none is taken; keys in use are not replaced without an end."""
        fresh = self.keys_of == 0
        self.device.give_keys(session)
        if not fresh and session == self.keys_of and self.state in (LOCKED, RUN):
            self.state, self.nonce = ERROR, None
        if fresh:
            self.keys_of = session

    @rule(session=SESSIONS)
    def end_session(self, session: int) -> None:
        self.device.keys.end_session(session)
        self.device.dsm.end_session(session)
        if self.keys_of == session:
            self.keys_of = 0
        if self.state in (LOCKED, RUN) and self.owner == session:
            self.state, self.nonce = ERROR, None

    @rule()
    def conventional_reset(self) -> None:
        """Session, keys and interfaces are gone."""
        self.device.keys.end_session(self.keys_of)
        self.device.tdi.reset()
        self.keys_of, self.state, self.nonce = 0, UNLOCKED, None

    @invariant()
    def the_state_is_the_automatons(self) -> None:
        assert self.device.tdi.state is self.state
        assert self.device.tdi.may_send(tee=True) is (self.state is RUN)
        assert self.device.tdi.admits(0, tee=True, stream_id=STREAM) is (self.state is RUN)


TestOneTdi = OneTdi.TestCase
TestOneTdi.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
