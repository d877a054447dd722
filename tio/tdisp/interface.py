"""One TDI: its state, what moves it, and which packets it sends and takes in which state.

Source: PCI Express base specification 6.x, 11.2 (states and what leads to ERROR), 11.4 (T bit). A device tells nobody
that a TDI went to ERROR: whoever asks for the state learns it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from tio.ide.stream import IdeStream
from tio.tdisp.messages import NONCE_BYTES, ErrorCode, LockFlags, LockRequest, TdispError, TdiState
from tio.tdisp.report import PAGE_SHIFT, InterfaceInfo, InterfaceReport, MmioRange, RangeAttributes

ALL_FLAGS = ~LockFlags(0)
_UPDATABLE = RangeAttributes.IS_MEM_ATTR_UPDATABLE
_NON_TEE = RangeAttributes.IS_NON_TEE_MEM


class Tampering(Enum):
    """What takes a locked or running TDI to ERROR, and the lock flag without which it does not (11.2.6)."""

    BAR = "a BAR, VF BAR or expansion ROM was written"
    MEMORY_SPACE = "Memory Space Enable or Bus Master Enable was cleared"
    REQUESTER_ID = "the bus number was captured again"
    SR_IOV = "SR-IOV control was written"
    ARI = "ARI was changed"
    RESIZABLE_BAR = "a BAR was resized"
    PASID = "PASID control was changed"
    ATS = "ATS or PRI control was changed"
    TPH = "TPH or LNR control was changed"
    IDE_CONTROL = "the control of the bound stream was written"
    MSIX = "the MSI-X table or its mask was written"
    FUNCTION_RESET = "function-level reset"
    POWER_STATE = "a power state that loses context"
    SESSION_END = "the session ended"
    STREAM = "the bound stream became Insecure, or got keys from elsewhere"
    POISONED = "a poisoned packet was taken as trusted data"
    COMPLETION = "a trusted request was refused, timed out or was answered without T"
    FIRMWARE_UPDATE = "firmware was updated"
    SVN_ROLLBACK = "firmware went back to a lower security version"
    DEBUG_MODE = "debug mode was enabled"
    INTERNAL = "an integrity error inside the device"


NEEDS_FLAG = {Tampering.MSIX: LockFlags.LOCK_MSIX, Tampering.FIRMWARE_UPDATE: LockFlags.NO_FW_UPDATE}
"""Of the rest all lead to ERROR whatever was locked."""


class Function(Protocol):
    """The function behind a TDI, as its DSM sees it."""

    def objection(self, flags: LockFlags) -> str | None:
        """Why the function's configuration cannot be locked; None if it can."""

    def report(self) -> InterfaceReport:
        """What it is now, at its own addresses and with its MSI-X table locked."""

    def begin(self) -> None:
        """The TDI runs: trusted traffic may begin."""

    def scrub(self) -> None:
        """Trusted traffic has ended: what is left of it is to be gone."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What a TDI was locked with: session and stream, the stream's epoch at that time, and the report."""

    session_id: int
    stream: IdeStream
    epoch: int
    request: LockRequest
    report: InterfaceReport
    nonce: bytes | None


class Tdi:
    """One interface of a device. ``draw`` gives random bytes.

    ``scrubs``: STOP and ERROR clear what trusted work left in the device, as the specification wants.
    ``missing_keys`` is what a lock without complete keys is answered; public validators expect INVALID_REQUEST.
    """

    def __init__(
        self,
        function: Function,
        draw: Callable[[int], bytes],
        supported: LockFlags = ALL_FLAGS,
        *,
        scrubs: bool = True,
        missing_keys: ErrorCode = ErrorCode.INVALID_REQUEST,
    ) -> None:
        self.supported = supported
        self.why: Tampering | None = None
        """What led to ERROR."""
        self._function = function
        self._draw = draw
        self._scrubs = scrubs
        self._missing_keys = missing_keys
        self._state = TdiState.CONFIG_UNLOCKED
        self._lock: Lock | None = None
        self._non_tee: dict[int, bool] = {}
        self._p2p: dict[int, tuple[IdeStream, int]] = {}
        """Streams to peers that are bound, each with its epoch at that time."""

    @property
    def state(self) -> TdiState:
        """Its state now: a stream that is not the one it was locked with any more has led to ERROR."""
        lock = self._lock
        if lock is not None and lock.stream.epoch != lock.epoch and self._state in _BOUND:
            self._go_wrong(Tampering.STREAM)
        return self._state

    @property
    def lock(self) -> Lock | None:
        """What it is locked with; None in CONFIG_UNLOCKED."""
        return self._lock

    # What the TSM asks for.

    def lock_interface(self, session_id: int, request: LockRequest, stream: IdeStream | None) -> bytes:
        """CONFIG_UNLOCKED to CONFIG_LOCKED: the nonce that START must name.

        ``stream`` is the default stream that the request names if it has its keys from this session. Raises
        TdispError, and then nothing has changed.
        """
        self._must_be(TdiState.CONFIG_UNLOCKED)
        if request.flags & ~int(self.supported):
            raise TdispError(ErrorCode.INVALID_REQUEST, "a lock flag that the device does not support")
        if request.mmio_reporting_offset % (1 << PAGE_SHIFT):
            raise TdispError(ErrorCode.INVALID_REQUEST, "a reporting offset off page borders")
        if stream is None:
            raise TdispError(self._missing_keys, "a stream without all its keys of this session")
        flags = LockFlags(request.flags)
        objection = self._function.objection(flags)
        if objection is not None:
            raise TdispError(ErrorCode.INVALID_DEVICE_CONFIGURATION, objection)
        nonce = self._draw(NONCE_BYTES)
        if len(nonce) != NONCE_BYTES:
            raise TdispError(ErrorCode.INSUFFICIENT_ENTROPY, "no nonce")
        self._lock = Lock(session_id, stream, stream.epoch, request, self._reported(request), nonce)
        self._state, self.why = TdiState.CONFIG_LOCKED, None
        ranges = self._lock.report.ranges
        self._non_tee = {at: bool(one.attributes & _NON_TEE) for at, one in enumerate(ranges)}
        return nonce

    def start(self, nonce: bytes) -> None:
        """CONFIG_LOCKED to RUN; the nonce is used up. Raises TdispError: a wrong one changes nothing."""
        self._must_be(TdiState.CONFIG_LOCKED)
        lock = self._bound()
        if lock.nonce is None or nonce != lock.nonce:
            raise TdispError(ErrorCode.INVALID_NONCE, "another nonce than this lock's")
        self._lock = replace(lock, nonce=None)
        self._state = TdiState.RUN
        self._function.begin()

    def stop(self) -> None:
        """To CONFIG_UNLOCKED from any state; trusted traffic has ended and its data is gone when this is answered."""
        if self.state is not TdiState.CONFIG_UNLOCKED:
            self._end()

    def report(self) -> InterfaceReport:
        """The report, the same as long as it is locked. Raises TdispError."""
        self._must_be(TdiState.CONFIG_LOCKED, TdiState.RUN)
        return self._bound().report

    def set_mmio_attribute(self, wanted: MmioRange) -> None:
        """Make a range trusted or not, if it says that this may change. Raises TdispError; then nothing has changed."""
        self._must_be(TdiState.RUN)
        for at, one in enumerate(self._bound().report.ranges):
            same = (one.first_page, one.pages, one.range_id) == (wanted.first_page, wanted.pages, wanted.range_id)
            if same and one.attributes & _UPDATABLE and not (one.attributes ^ wanted.attributes) & ~_NON_TEE:
                self._non_tee[at] = bool(wanted.attributes & _NON_TEE)
                return
        raise TdispError(ErrorCode.INVALID_REQUEST, "a range that was not reported so, or may not change")

    def bind_p2p(self, stream: IdeStream | None, stream_id: int) -> None:
        """Let trusted packets go to a peer on a stream of their own, and take them from there. Raises TdispError.

        A lock that has every request go to the host (ALL_REQUEST_REDIRECT) lets none go to a peer.
        """
        self._must_be(TdiState.RUN)
        flags = self._bound().request.flags & (LockFlags.BIND_P2P | LockFlags.ALL_REQUEST_REDIRECT)
        if flags != LockFlags.BIND_P2P or stream is None or self._is_peers(stream_id):
            raise TdispError(ErrorCode.INVALID_REQUEST, "a peer's stream without keys, or a lock without BIND_P2P")
        self._p2p[stream_id] = stream, stream.epoch

    def unbind_p2p(self, stream_id: int) -> None:
        """No more of it. Raises TdispError."""
        self._must_be(TdiState.RUN)
        if stream_id not in self._p2p:
            raise TdispError(ErrorCode.INVALID_REQUEST, "a stream that is not bound")
        del self._p2p[stream_id]

    # What happens to the device.

    def tamper(self, event: Tampering) -> None:
        """Something happened that a locked configuration does not survive."""
        if self.state not in _BOUND:
            return
        needed = NEEDS_FLAG.get(event, LockFlags(0))
        if not needed or self._bound().request.flags & needed:
            self._go_wrong(event)

    def session_ended(self, session_id: int) -> None:
        """A session of the device is over."""
        if self._lock is not None and self._lock.session_id == session_id:
            self.tamper(Tampering.SESSION_END)

    def reset(self) -> None:
        """Conventional reset."""
        if self._state is not TdiState.CONFIG_UNLOCKED:
            self._end()

    # Packets.

    def may_send(self, *, tee: bool) -> bool:
        """Whether the TDI may send a request with this T bit; without T only for what is not trusted."""
        return self.state is TdiState.RUN if tee else self.state is not TdiState.ERROR

    def sends_on(self, stream: IdeStream) -> bool:
        """Whether its trusted requests may go on a stream: that of its lock, or one to a peer that is bound."""
        lock = self._lock
        if lock is not None and stream is lock.stream:
            return True
        return self._is_peers(stream.stream_id) and self._p2p[stream.stream_id][0] is stream

    def admits(self, range_number: int | None, *, tee: bool, stream_id: int | None) -> bool:
        """Whether it takes a request for its memory: of a reported range by number, None for what is in none."""
        state = self.state
        if state not in _BOUND:
            return not tee and state is TdiState.CONFIG_UNLOCKED
        lock = self._bound()
        trusted = range_number is not None and not self._non_tee[range_number]
        if tee:
            bound = stream_id == lock.stream.stream_id or (stream_id is not None and self._is_peers(stream_id))
            return state is TdiState.RUN and bound
        return not trusted

    # Within.

    def _is_peers(self, stream_id: int) -> bool:
        """Whether a stream is bound, and has not failed or got other keys since."""
        stream, epoch = self._p2p.get(stream_id, (None, 0))
        return stream is not None and stream.epoch == epoch

    def _must_be(self, *states: TdiState) -> None:
        if self.state not in states:
            raise TdispError(ErrorCode.INVALID_INTERFACE_STATE, f"not legal in {self._state.name}")

    def _bound(self) -> Lock:
        assert self._lock is not None, "expected a TDI that is locked"
        return self._lock

    def _reported(self, request: LockRequest) -> InterfaceReport:
        found, msix = self._function.report(), bool(request.flags & LockFlags.LOCK_MSIX)
        info = InterfaceInfo(found.info & ~int(InterfaceInfo.NO_FW_UPDATE))
        if request.flags & LockFlags.NO_FW_UPDATE:
            info |= InterfaceInfo.NO_FW_UPDATE
        tables = RangeAttributes.MSIX_TABLE | RangeAttributes.MSIX_PBA
        ranges = tuple(
            [
                one.moved(request.mmio_reporting_offset)
                for one in found.ranges
                if msix or not one.attributes & tables or one.attributes & _NON_TEE
            ]
        )
        if msix:
            return replace(found, info=info, ranges=ranges)
        return replace(found, info=info, ranges=ranges, msix_control=0, tph_control=0)

    def _go_wrong(self, event: Tampering) -> None:
        lock = self._bound()
        self._state, self.why = TdiState.ERROR, event
        self._lock = replace(lock, nonce=None)
        self._p2p.clear()
        if self._scrubs:
            self._function.scrub()

    def _end(self) -> None:
        self._state, self._lock = TdiState.CONFIG_UNLOCKED, None
        self._non_tee, self._p2p = {}, {}
        if self._scrubs:
            self._function.scrub()


_BOUND = (TdiState.CONFIG_LOCKED, TdiState.RUN)
