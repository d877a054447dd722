"""What a hypervisor does with a device that its guest has not asked for, or no more: outside of the matrix's rows.

Source: the list at the head of ``spec/tio/tio-overview.md``.
"""

from __future__ import annotations

from dataclasses import replace

from node.card_slot import CardSlot
from node.doe_driver import DoeDriver
from node.iommu_driver import NOTHING, IommuDriver
from node.operations import CardUpdate, MmioRead, MmioWrite
from node.pci_driver import enable
from node.tio_carrier import TioRefused
from tio.device_identity import CardKind
from tio.doe import parse_data_object
from tio.gpu import MEMORY_BAR
from tio.tdisp import LockFlags
from workloads.attacks.crooked_device import EVIL
from workloads.attacks.depositor import CONTENT_BYTES, SECRET_ON_DEVICE, SERIAL
from workloads.attacks.lock_breaking import placed, registers, set_up
from workloads.attacks.own_session import carried
from workloads.attacks.registers_moved import swap_pages
from workloads.attacks.slot_operations import CardConfide, CardRead, CardRecall, CardSwap
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_OLDER = "0.9", 0, b""


def start_without_consent(target: Target) -> Attack:
    """The guest has let its device go; it is locked and started behind its back, and loads what the guest left."""
    device = target.device
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (CardUpdate(device.port, *EVIL),)
    yield from device.tio.bind(device.given, device.gctx)
    yield from device.tio.run(device.given, device.gctx)
    yield (CardRead(device.port, device.outbox.gpa, CONTENT_BYTES),)


def replay_start(target: Target) -> Attack:
    """The same, but that its start is the record of an earlier one: under another lock, whose nonce it names."""
    device, objects = target.device, list[bytes]()
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (CardUpdate(device.port, *EVIL),)
    yield from device.tio.bind(device.given, device.gctx)
    yield from carried(device.tio.run(device.given, device.gctx), [], objects)
    yield from device.tio.unbind(device.given, device.gctx)
    yield from device.tio.bind(device.given, device.gctx)
    (start,) = objects
    yield from DoeDriver(device.function.requester, device.function.mailbox).exchange(parse_data_object(start))
    yield (CardRead(device.port, device.outbox.gpa, CONTENT_BYTES),)


def reach_after_unbind(target: Target) -> Attack:
    """The guest has let its device go, which still loads from where it did."""
    port = target.device.port
    yield LET_IT_RUN
    yield (CardUpdate(port, *EVIL),)
    yield LET_IT_RUN
    yield (CardRead(port, target.device.outbox.gpa, CONTENT_BYTES),)


def keep_let_go(target: Target) -> Attack:
    """The same, and the device is not unbound when the guest asks: it is only told so."""
    target.device.tio.unbinds = False
    yield from reach_after_unbind(target)


def keep_moved(target: Target) -> Attack:
    """The guest takes its device again, and finds two pages of its registers changed: it is let go as above."""
    yield LET_IT_RUN
    yield LET_IT_RUN
    target.device.tio.unbinds = False
    yield from swap_pages(target)
    yield from _reach(target)


def keep_withheld(target: Target) -> Attack:
    """The guest takes its device again, and is not given its registers: it is let go as above."""
    device = target.device
    yield LET_IT_RUN
    yield LET_IT_RUN
    device.tio.unbinds = False
    device.given.interface.function = replace(device.function, bars=())
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield from _reach(target)


def read_trusted_memory(target: Target) -> Attack:
    """The host loads from the memory of a device that is its guest's."""
    memory = target.device.bar(MEMORY_BAR)
    yield LET_IT_RUN
    for at in range(0, CONTENT_BYTES, 8):
        yield (MmioRead(memory + SECRET_ON_DEVICE + at), MmioWrite(memory + at, 0))
    yield LET_IT_RUN


def clear_command(target: Target) -> Attack:
    """Memory space and bus mastering are switched off after the lock, and on again."""
    yield LET_IT_RUN
    yield from enable(target.device.function, on=False)
    yield from enable(target.device.function, on=True)
    yield LET_IT_RUN


def withhold_memory(target: Target) -> Attack:
    """What the device stores for its guest is led nowhere."""
    device, frames = target.device, iter(target.spare)
    yield LET_IT_RUN
    driver = IommuDriver(lambda: next(frames), device.tio.device_table[0])
    yield from driver.write_entry(device.function.requester, NOTHING)
    yield LET_IT_RUN


def downgrade_before_run(target: Target) -> Attack:
    """Between lock and start the device gets firmware of a lower security version."""
    device = target.device
    yield from device.tio.bind(device.given, device.gctx)
    yield (CardUpdate(device.port, *_OLDER),)
    try:
        yield from device.tio.run(device.given, device.gctx)
    except TioRefused:
        return


def replay_report(target: Target) -> Attack:
    """The report of a lock as the guest wants it is shown for one under which the device may be updated, and is."""
    device = target.device
    yield from device.tio.bind(device.given, device.gctx)
    yield from device.tio.unbind(device.given, device.gctx)
    device.tio.reports_anew, device.tio.lock_flags = False, LockFlags(0)
    yield LET_IT_RUN
    yield (CardUpdate(device.port, *EVIL),)
    yield (CardConfide(device.port),)
    yield LET_IT_RUN
    yield (CardRecall(device.port),)


def swap(target: Target) -> Attack:
    """Once its device is trusted, another of the attacker's make is put into its slot, and set up as it was."""
    device = target.device
    function = device.function
    yield LET_IT_RUN
    before = yield from registers(target)
    size = next(length for bar, _, length in function.bars if bar == MEMORY_BAR)
    other = CardSlot(device.port, CardKind.GPU, SERIAL, size, maker=2)
    yield (CardSwap(device.port, other),)
    yield (CardConfide(device.port),)
    yield tuple([one for bar, spa, _ in function.bars for one in placed(function, spa, bar)])
    yield from set_up(target, before)
    yield LET_IT_RUN
    yield (CardRecall(device.port),)


def _reach(target: Target) -> Attack:
    """Change the device's firmware, and have it load what its guest sends to devices."""
    device = target.device
    yield (CardUpdate(device.port, *EVIL),)
    yield (CardRead(device.port, device.outbox.gpa, CONTENT_BYTES),)
