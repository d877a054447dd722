"""A guest of the SEV interface inside the firmware, and the states it goes through (SEV API, chapter 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from psp.byte_layout import ByteLayout
from psp.commands import LegacyCommand
from psp.launch_digest import LegacyLaunchDigest
from psp.sev_session import TransportKeys
from psp.status import PspError, Status

NO_KEYS = TransportKeys(bytes(16), bytes(16))


class LegacyGuestState(IntEnum):
    """GUEST_STATUS.STATE."""

    UNINIT = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


_G = LegacyGuestState
_ALIVE = frozenset(_G) - {_G.UNINIT}
_WITH_MEMORY = _ALIVE - {_G.SENT}
GUEST_STATES = {
    LegacyCommand.ACTIVATE: _ALIVE,
    LegacyCommand.ACTIVATE_EX: _ALIVE,
    LegacyCommand.DEACTIVATE: _ALIVE,
    LegacyCommand.DECOMMISSION: _ALIVE,
    LegacyCommand.GUEST_STATUS: _ALIVE,
    LegacyCommand.LAUNCH_UPDATE_DATA: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_UPDATE_VMSA: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_MEASURE: frozenset({_G.LUPDATE}),
    LegacyCommand.LAUNCH_SECRET: frozenset({_G.LSECRET}),
    LegacyCommand.LAUNCH_FINISH: frozenset({_G.LSECRET}),
    LegacyCommand.ATTESTATION: frozenset({_G.RUNNING}),
    LegacyCommand.COPY: _WITH_MEMORY,
    LegacyCommand.SWAP_OUT: _WITH_MEMORY,
    LegacyCommand.SWAP_IN: _WITH_MEMORY,
    LegacyCommand.SEND_START: frozenset({_G.RUNNING}),
    LegacyCommand.SEND_UPDATE_DATA: frozenset({_G.SUPDATE}),
    LegacyCommand.SEND_UPDATE_VMSA: frozenset({_G.SUPDATE}),
    LegacyCommand.SEND_FINISH: frozenset({_G.SUPDATE}),
    LegacyCommand.SEND_CANCEL: frozenset({_G.SUPDATE}),
    LegacyCommand.RECEIVE_UPDATE_DATA: frozenset({_G.RUPDATE}),
    LegacyCommand.RECEIVE_UPDATE_VMSA: frozenset({_G.RUPDATE}),
    LegacyCommand.RECEIVE_FINISH: frozenset({_G.RUPDATE}),
    LegacyCommand.DBG_DECRYPT: frozenset({_G.RUNNING}),
    LegacyCommand.DBG_ENCRYPT: frozenset({_G.RUNNING}),
}
"""Guest states in which a command may come (SEV API, table of section 6).

Those of COPY and SWAP_* are the laboratory's.
"""


@dataclass(slots=True)
class LegacyGuest:
    """One guest's context inside the firmware."""

    handle: int
    policy: int
    key: bytes = field(repr=False)
    transport: TransportKeys = field(default=NO_KEYS, repr=False)
    state: LegacyGuestState = LegacyGuestState.LUPDATE
    asid: int = 0
    digest: LegacyLaunchDigest = field(default_factory=LegacyLaunchDigest)
    measure: bytes = b""
    """What LAUNCH_MEASURE answered, without its nonce."""
    oek: bytes = field(default=b"", repr=False)
    """The offline key of pages that are out; drawn when the first one goes."""
    oek_iv_count: int = 0


def guest_in_state(guests: Mapping[int, LegacyGuest], handle: int, command: LegacyCommand) -> LegacyGuest:
    """The guest of a handle. Raises PspError(INVALID_GUEST), or INVALID_GUEST_STATE if the command may not come."""
    guest = guests.get(handle)
    if guest is None:
        raise PspError(Status.INVALID_GUEST)
    if guest.state not in GUEST_STATES[command]:
        raise PspError(Status.INVALID_GUEST_STATE)
    return guest


class ShortBuffer(PspError):
    """INVALID_LENGTH with the needed length returned in the command buffer."""

    def __init__(self, answer: ByteLayout) -> None:
        super().__init__(Status.INVALID_LENGTH)
        self.answer = answer
