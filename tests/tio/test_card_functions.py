"""Virtual functions: requester id, memory and interface of each, and what their host does to all of them."""

from __future__ import annotations

import pytest
from slot import BARS, CARD, DATA, SESSION, STREAM, Slot, draw

from tio.card import Card
from tio.card_dma import CardDma
from tio.card_functions import Behind, TdiSettings
from tio.device_identity import CardKind
from tio.device_security_module import ProtocolId
from tio.dma_port import DmaFault
from tio.ide.capability import control_word
from tio.loose_device import LooseDevice
from tio.pci import Command, DeviceControl, Register, SrIovControl, SrIovRegister
from tio.steps import carry
from tio.tdisp import InterfaceId, LockRequest, Tampering, TdispError, TdiState, requester

ONES = 0xFFFF_FFFF
VF_BAR, VF_MSIX = 0xC0_0030_0000, 0xC0_0038_0000
VFS = 3


class Manyfold(Slot):
    """A NIC with three VFs, two of them made."""

    def __init__(self, made: int = 2, settings: TdiSettings | None = None) -> None:
        self.dmas = [CardDma() for _ in range(VFS)]
        self.devices = [LooseDevice() for _ in range(VFS + 1)]
        self.dma = CardDma()
        virtual = [Behind(device, dma) for device, dma in zip(self.devices[1:], self.dmas, strict=True)]
        card = Card(
            CardKind.NIC, self.devices[0], draw, dma=self.dma, virtual=virtual, requester_id=CARD, tdi=settings
        )
        super().__init__(card)
        self.sr_iov(SrIovRegister.NUM_VFS, made)
        for index, address in ((0, VF_BAR), (4, VF_MSIX)):
            self.sr_iov(SrIovRegister.VF_BAR_0 + 4 * index, address & ONES)
            self.sr_iov(SrIovRegister.VF_BAR_0 + 4 * index + 4, address >> 32)
        self.sr_iov(SrIovRegister.CONTROL, SrIovControl.VF_ENABLE | SrIovControl.VF_MEMORY_SPACE)
        for number in range(made):
            self.root.configuration_write(CARD + 1 + number, Register.COMMAND, Command.BUS_MASTER, 2)

    def sr_iov(self, offset: int, value: int) -> None:
        at = self.card.space.extended_at(self.card.functions.sr_iov)
        self.root.configuration_write(CARD, at + offset, value)

    def write_block_for_all(self) -> None:
        """The root port's stream holds VFs too."""
        last = VF_MSIX + 0xF_FFFF
        self.write_block(self.ide_of_root, 0, (CARD, CARD + VFS), (BARS[0], last), control_word(STREAM, **self.control))

    def ask_interface(self, steps, session: int = SESSION):
        return carry(steps, lambda message: self.ask(ProtocolId.TDISP, message, session))

    def run_interface(self, number: int) -> None:
        interface = InterfaceId(CARD + number)
        nonce = self.ask_interface(requester.lock_interface(interface, LockRequest(0, STREAM)))
        self.ask_interface(requester.start_interface(interface, nonce))

    def states(self) -> list[TdiState]:
        return [one.state for one in self.card.functions.tdis]


def trusted() -> Manyfold:
    """PF and both VFs run, all from one session."""
    slot = Manyfold()
    slot.write_block_for_all()
    slot.give_keys()
    for number in range(3):
        slot.run_interface(number)
    return slot


def test_virtual_functions_are_there_once_they_are_made() -> None:
    slot = Manyfold()
    assert [slot.root.configuration_read(CARD + at, Register.DEVICE_CONTROL, 2) for at in range(4)] == [0, 0, 0, 0xFFFF]
    assert slot.root.configuration_read(CARD + 1, Register.VENDOR_ID) == ONES  # the PF says it for them
    slot.root.store(VF_BAR + 0x10, 1, 4, tee=False)
    slot.root.store(VF_BAR + 0x4010, 2, 4, tee=False)
    slot.root.store(VF_BAR + 0x8010, 3, 4, tee=False)
    assert [device.load(0, 0x10, 4) for device in slot.devices] == [0, 1, 2, 0]
    assert slot.root.load(VF_BAR + 0x8010, 4, tee=False) == ONES
    # Their own command register has no memory enable, nor BARs.
    slot.root.configuration_write(CARD + 1, 0x10, 0x1000)
    slot.root.configuration_write(CARD + 1, Register.COMMAND, 0xFFFF, 2)
    assert slot.root.configuration_read(CARD + 1, 0x10) == 0
    assert slot.root.configuration_read(CARD + 1, Register.COMMAND, 2) == Command.BUS_MASTER


def test_each_reaches_memory_by_its_own_requester_id_if_it_may_be_master() -> None:
    slot = Manyfold()
    for dma in (slot.dma, *slot.dmas[:2]):
        dma.write(DATA, b"data")
    assert [one.requester for one in slot.memory.log] == [CARD, CARD + 1, CARD + 2]
    with pytest.raises(DmaFault):
        slot.dmas[2].write(DATA, b"data")
    slot.root.configuration_write(CARD + 2, Register.COMMAND, 0, 2)
    with pytest.raises(DmaFault):
        slot.dmas[1].read(DATA, 4)


def test_one_session_locks_all_and_each_is_trusted_by_itself() -> None:
    slot = Manyfold()
    slot.write_block_for_all()
    slot.give_keys()
    slot.run_interface(2)
    assert slot.states() == [TdiState.CONFIG_UNLOCKED, TdiState.CONFIG_UNLOCKED, TdiState.RUN, TdiState.CONFIG_UNLOCKED]
    slot.memory.log.clear()
    slot.dmas[0].write(DATA, b"data")
    slot.dmas[1].write(DATA, b"data")
    assert [(one.requester, one.tee) for one in slot.memory.log] == [(CARD + 1, False), (CARD + 2, True)]
    slot.root.store(VF_BAR + 0x4000, 9, 4, tee=True)
    slot.root.store(VF_BAR, 9, 4, tee=True)
    assert [device.load(0, 0, 4) for device in slot.devices[1:3]] == [0, 9]
    with pytest.raises(TdispError):
        slot.run_interface(3)  # not made
    with pytest.raises(TdispError):
        slot.ask_interface(requester.stop_interface(InterfaceId(CARD + 2)), session=SESSION + 1)


def test_a_reset_of_a_virtual_function_is_its_own_and_of_the_physical_one_everybodys() -> None:
    slot = trusted()
    slot.root.configuration_write(CARD + 1, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert slot.states()[:3] == [TdiState.RUN, TdiState.ERROR, TdiState.RUN]
    assert slot.card.port.streams[STREAM].enabled
    slot = trusted()
    slot.root.configuration_write(CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert slot.states()[:3] == [TdiState.ERROR] * 3
    assert {one.why for one in slot.card.functions.tdis[:3]} == {Tampering.FUNCTION_RESET}
    assert slot.root.configuration_read(CARD + 1, Register.COMMAND, 2) == 0xFFFF
    assert slot.root.load(VF_BAR, 4, tee=False) == ONES


def test_a_physical_function_that_loses_power_takes_its_virtual_ones_with_it() -> None:
    slot = trusted()
    slot.root.configuration_write(CARD + 1, Register.POWER_CONTROL, 3, 2)
    assert slot.states()[:3] == [TdiState.RUN, TdiState.ERROR, TdiState.RUN]
    slot.root.configuration_write(CARD, Register.POWER_CONTROL, 3, 2)
    assert slot.states()[:3] == [TdiState.ERROR] * 3
    with pytest.raises(DmaFault):
        slot.dma.write(DATA, b"data")
    slot.root.configuration_write(CARD, Register.POWER_CONTROL, 0, 2)
    assert slot.root.configuration_read(CARD + 1, Register.COMMAND, 2) == 0xFFFF


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (SrIovRegister.CONTROL, 0, Tampering.SR_IOV),
        (SrIovRegister.CONTROL, SrIovControl.VF_ENABLE, Tampering.SR_IOV),
        (SrIovRegister.VF_BAR_0, 0x8000_0000, Tampering.BAR),
    ],
)
def test_a_host_that_moves_or_unmakes_virtual_functions_takes_all_locks_to_error(
    offset: int, value: int, why: Tampering
) -> None:
    slot = trusted()
    slot.sr_iov(offset, value)
    assert slot.states()[:3] == [TdiState.ERROR] * 3
    assert {one.why for one in slot.card.functions.tdis[:3]} == {why}


def test_a_bus_number_captured_again_is_everybodys() -> None:
    slot = trusted()
    slot.root.configuration_write(0x0500, Register.COMMAND, 6, 2)
    assert slot.states()[:3] == [TdiState.ERROR] * 3
    assert [one.requester_id for one in slot.card.functions.all] == [0x0500, 0x0501, 0x0502, 0x0503]


def test_memory_of_functions_that_overlaps_is_never_locked() -> None:
    slot = Manyfold()
    slot.write_block_for_all()
    slot.give_keys()
    slot.sr_iov(SrIovRegister.VF_BAR_0, BARS[0] & ONES)
    for number in (0, 1):
        with pytest.raises(TdispError, match="0x104"):
            slot.run_interface(number)


def test_a_stream_that_ends_takes_every_interface_that_it_bound() -> None:
    slot = trusted()
    slot.root.port.streams[STREAM].disable()
    slot.ide_of_card(slot.root.ide.block_at(0) + 4, 0)
    assert slot.states()[:3] == [TdiState.ERROR] * 3
    assert {one.why for one in slot.card.functions.tdis[:3]} == {Tampering.IDE_CONTROL}
