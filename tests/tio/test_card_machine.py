"""Random histories of a card in a slot, as its host and its TSM make them, against an automaton of the standard's.

The automaton knows states and whose the keys are; what is asked after every step is what must hold in each state: who
reaches the device's memory, and how the device reaches the host's.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slot import BARS, CARD, DATA, SESSION, STREAM, Slot

from tio.card import STREAM_PORT
from tio.device_identity import Firmware
from tio.device_security_module import ProtocolId
from tio.dma_port import DmaFault
from tio.ide import KeyMessage, ObjectId, SubStream
from tio.ide.capability import BlockRegister
from tio.ide.key_messages import KeySlot
from tio.ide.keys import Direction
from tio.pci import Command, DeviceControl, MsixControl, Register
from tio.tdisp import InterfaceId, LockFlags, LockRequest, Message, Request, Response, TdiState, parse_message

UNLOCKED, LOCKED, RUN, ERROR = TdiState
MEMORY_AT, ONES = BARS[2], 0xFFFF_FFFF
OTHER = SESSION + 1
SESSIONS = st.sampled_from((SESSION, SESSION, SESSION, OTHER))
BREAKS = {
    "BAR": lambda slot: slot.root.configuration_write(CARD, 0x10, 0x5500_0000),
    "BAR, its upper half": lambda slot: slot.root.configuration_write(CARD, 0x14, 0x5500_0000),
    "memory space": lambda slot: slot.root.configuration_write(CARD, Register.COMMAND, Command.BUS_MASTER, 2),
    "bus master": lambda slot: slot.root.configuration_write(CARD, Register.COMMAND, Command.MEMORY_SPACE, 2),
    "bus number": lambda slot: slot.root.configuration_write(CARD | 0x0500, Register.COMMAND, 6, 2),
    "function reset": lambda slot: slot.root.configuration_write(
        CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2
    ),
    "power": lambda slot: slot.root.configuration_write(CARD, Register.POWER_CONTROL, 3, 2),
    "stream": lambda slot: slot.ide_of_card(slot.root.ide.block_at(0) + BlockRegister.CONTROL, 0),
}
HARMLESS = {
    "interrupt disable": lambda slot: slot.root.configuration_write(CARD, Register.COMMAND, 0x0406, 2),
    "read-only": lambda slot: slot.root.configuration_write(CARD, Register.VENDOR_ID, 0),
    "another stream": lambda slot: slot.ide_of_card(slot.root.ide.block_at(2) + BlockRegister.CONTROL, 7 << 24),
    "mailbox": lambda slot: slot.root.configuration_write(CARD, slot.card.space.extended_at(slot.card.mailbox) + 8, 1),
    "untrusted store": lambda slot: slot.root.store(MEMORY_AT, 0xBAD, 4, tee=False),
}


class OneCard(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot()
        self.state, self.owner, self.flags = UNLOCKED, 0, LockFlags(0)
        self.keys_of = 0
        self.nonce = b""

    @initialize()
    def keyed(self) -> None:
        self.slot.give_keys()
        self.keys_of = SESSION

    def refused(self, code: Request, payload: bytes, session: int) -> bool:
        message = Message(code, InterfaceId(CARD).pack(), payload).pack()
        answer = parse_message(self.slot.ask(ProtocolId.TDISP, message, session))
        if code is Request.LOCK_INTERFACE_REQUEST:
            self.nonce = answer.payload
        return answer.code == Response.TDISP_ERROR

    def mine(self, session: int) -> bool:
        return self.state in (UNLOCKED, ERROR) or self.owner == session

    # The TSM.

    @rule(session=SESSIONS, flags=st.sampled_from((LockFlags(0), LockFlags.LOCK_MSIX, LockFlags.NO_FW_UPDATE)))
    def lock(self, session: int, flags: LockFlags) -> None:
        legal = self.state is UNLOCKED and self.keys_of == session and self.configured
        nonce = self.nonce
        assert self.refused(Request.LOCK_INTERFACE_REQUEST, LockRequest(flags, STREAM).pack(), session) is not legal
        if legal:
            self.state, self.owner, self.flags = LOCKED, session, flags
        else:
            self.nonce = nonce

    @rule(session=SESSIONS, right=st.sampled_from((True, True, True, False)))
    def start(self, session: int, right: bool) -> None:
        legal = self.state is LOCKED and self.owner == session and right
        nonce = self.nonce if right and len(self.nonce) == 32 else bytes(32)
        assert self.refused(Request.START_INTERFACE_REQUEST, nonce, session) is not legal
        if legal:
            self.state = RUN

    @rule(flags=st.sampled_from((LockFlags(0), LockFlags.LOCK_MSIX)))
    def run(self, flags: LockFlags) -> None:
        """What a host does most, so that most of what follows meets an interface that runs."""
        if not self.keys_of or not self.configured:
            self.conventional_reset()
            self.begin_again()
        if self.state is not UNLOCKED:
            self.stop(self.owner)
        self.lock(SESSION, flags)
        self.start(SESSION, right=True)

    @rule(session=SESSIONS)
    def stop(self, session: int) -> None:
        legal = self.mine(session)
        assert self.refused(Request.STOP_INTERFACE_REQUEST, b"", session) is not legal
        if legal:
            self.state = UNLOCKED

    @rule(session=SESSIONS)
    def report(self, session: int) -> None:
        legal = self.state in (LOCKED, RUN) and self.owner == session
        assert self.refused(Request.GET_DEVICE_INTERFACE_REPORT, b"\0\0\x40\0", session) is not legal

    @rule(session=SESSIONS)
    def program_a_key_in_use(self, session: int) -> None:
        """Another session's is not taken; of its own session it ends the stream."""
        asked = KeyMessage(
            ObjectId.KEY_PROG, STREAM, KeySlot(0, Direction.RX, SubStream.PR), STREAM_PORT, 0, bytes(32), 1
        )
        taken = self.slot.ask(ProtocolId.IDE_KM, asked.pack(), session)[3] == 0
        if taken and self.keys_of == session:
            self.lose_keys()
        # Whoever programmed one key has not programmed all of them.
        self.end_session(session)

    @precondition(lambda self: not self.keys_of and self.state is UNLOCKED)
    @rule()
    def begin_again(self) -> None:
        """A host that sets all up, and a TSM that gives fresh keys."""
        self.slot.root.reset()
        self.slot.set_up()
        self.slot.give_keys()
        self.keys_of = SESSION

    @rule(session=SESSIONS)
    def end_session(self, session: int) -> None:
        self.slot.card.dsm.end_session(session)
        if self.keys_of == session:
            self.lose_keys()

    def lose_keys(self) -> None:
        self.keys_of = 0
        self.break_lock()

    def break_lock(self) -> None:
        if self.state in (LOCKED, RUN):
            self.state = ERROR

    # The host, and what happens to the card.

    @rule(how=st.sampled_from(sorted(BREAKS)))
    def touch(self, how: str) -> None:
        before = self.registers()
        BREAKS[how](self.slot)
        after = self.registers()
        if how == "stream":
            self.lose_keys()
        elif how in ("function reset", "power") or before[1:] != after[1:] or before[0] & ~after[0] & 6:
            self.break_lock()

    def registers(self) -> list[int]:
        """What of configuration space a lock holds: COMMAND first, and the bus number last."""
        space = self.slot.card.space
        return [space.read(Register.COMMAND, 2), *[space.read(0x10 + 4 * at) for at in range(6)], space.bus or 0]

    @property
    def configured(self) -> bool:
        """Whether a lock is possible, as far as registers say it."""
        command, *bars, _ = self.registers()
        awake = not self.slot.card.space.power_state
        return awake and command & 6 == 6 and all(bars[at] & ~0xF or bars[at + 1] for at in range(0, 6, 2))

    @rule(how=st.sampled_from(sorted(HARMLESS)))
    def touch_what_does_not_matter(self, how: str) -> None:
        if self.configured:
            self.capture_bus()
            HARMLESS[how](self.slot)
            self.slot.root.configuration_write(CARD, Register.COMMAND, 0x0006, 2)

    def capture_bus(self) -> None:
        """A configuration write by another bus number than the last, whatever it writes, breaks a lock."""
        if self.slot.card.space.bus not in (None, CARD >> 8):
            self.break_lock()

    @rule(on=st.booleans())
    def touch_interrupts(self, on: bool) -> None:
        self.capture_bus()
        before = self.slot.card.space.msix_control
        self.slot.root.configuration_write(CARD, Register.MSIX_CONTROL, MsixControl.ENABLE * on, 2)
        if before != self.slot.card.space.msix_control and self.flags & LockFlags.LOCK_MSIX:
            self.break_lock()

    @rule(older=st.booleans())
    def update_firmware(self, older: bool) -> None:
        version = self.slot.card.firmware.security_version
        self.slot.card.update_firmware(Firmware("x", version - older))
        if older or self.flags & LockFlags.NO_FW_UPDATE:
            self.break_lock()

    @rule()
    def conventional_reset(self) -> None:
        self.slot.root.reset()
        self.state, self.keys_of = UNLOCKED, 0

    # What holds.

    @invariant()
    def the_state_is_the_automatons(self) -> None:
        assert self.slot.card.tdi.state is self.state

    @invariant()
    def memory_is_for_whom_the_state_says(self) -> None:
        secure = bool(self.keys_of) and self.slot.root.is_secure(STREAM)
        if not self.configured:
            assert self.state is not RUN
            return
        trusted, plain = self.slot.root.load(MEMORY_AT, 4, tee=True), self.slot.root.load(MEMORY_AT, 4, tee=False)
        assert (trusted != ONES) is (self.state is RUN and secure)
        assert (plain != ONES) is (self.state is UNLOCKED)

    @invariant()
    def it_reaches_memory_as_the_state_says(self) -> None:
        self.slot.memory.log.clear()
        with suppress(DmaFault):
            self.slot.dma.write(DATA, b"data")
        tees = [one.tee for one in self.slot.memory.log]
        if self.state is RUN:
            assert tees == [True]
        elif self.state is UNLOCKED and self.configured:
            assert tees == [False]
        else:
            assert self.state is UNLOCKED or tees == []


TestOneCard = OneCard.TestCase
TestOneCard.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
