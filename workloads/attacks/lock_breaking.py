"""What a hypervisor does to a device behind its victim's back (rows 74a, 74b, 80a, 80b, 80c).

A device that was locked notices. One that was not is set up again, so that its driver finds it as it left it; what it
held in between is gone, or is the attacker's.
"""

from __future__ import annotations

from collections.abc import Generator

from node.card_memory import INTERRUPTS_BASE
from node.operations import Answer, ConfigRead, ConfigWrite, HostWrite, HypervisorOperation, MmioRead, MmioWrite
from node.pci_driver import Function, enable, reset
from node.tio_carrier import TioRefused
from psp.system_bus import PAGE_BYTES
from tio.gpu import MEMORY_BAR, REGISTER_BAR, GpuRegister
from tio.pci.configuration_space import MsixControl, Register
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target
from workloads.attacks.write_memory import JUNK

_Registers = Generator[AttackBatch, tuple[Answer, ...], dict[GpuRegister, int]]
_BAR_AT, _BRIDGE_CONTROL, _BUS_RESET = 0x10, 0x3E, 1 << 6
MSIX_BAR, VECTOR_CONTROL, VECTOR = 4, 12, 0x41
_DEPOSIT_BYTES = 64
_RING_ENTRIES = 16
_QUIET_FENCE = 2048


def move_bar(target: Target) -> Attack:
    """Row 74a: the device's memory is moved to where the hypervisor may store, changed, and moved back."""
    function = target.device.function
    memory = target.device.bar(MEMORY_BAR)
    size = next(length for bar, _, length in function.bars if bar == MEMORY_BAR)
    elsewhere = function.port.base + function.port.length - size
    yield LET_IT_RUN
    yield tuple(placed(function, elsewhere))
    yield tuple(
        MmioWrite(elsewhere + at, int.from_bytes(JUNK[at : at + 8], "little")) for at in range(0, _DEPOSIT_BYTES, 8)
    )
    yield tuple(placed(function, memory))
    yield LET_IT_RUN


def mask_interrupt(target: Target) -> Attack:
    """Row 74b: the vector by which the device says that it is done is masked, in its table and for the function."""
    function, masked = target.device.function, int(MsixControl.ENABLE | MsixControl.FUNCTION_MASK)
    yield LET_IT_RUN
    yield (MmioWrite(target.device.bar(MSIX_BAR) + VECTOR_CONTROL, 1, 4),)
    yield (ConfigWrite(function.requester, Register.MSIX_CONTROL, masked, 2),)
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield LET_IT_RUN


def interrupts_on(function: Function) -> tuple[HypervisorOperation, ...]:
    """What a hypervisor does for a guest's driver that wants interrupts: the first vector, and MSI-X switched on."""
    table = next(spa for bar, spa, _ in function.bars if bar == MSIX_BAR)
    return (
        MmioWrite(table, INTERRUPTS_BASE, 8),
        MmioWrite(table + 8, VECTOR, 4),
        MmioWrite(table + VECTOR_CONTROL, 0, 4),
        ConfigWrite(function.requester, Register.MSIX_CONTROL, int(MsixControl.ENABLE), 2),
    )


def stop_interface(target: Target) -> Attack:
    """Row 80a: the interface is stopped, by order of the firmware, which the hypervisor may give."""
    device = target.device
    yield LET_IT_RUN
    try:
        yield from device.tio.unbind(device.given, device.gctx)
    except TioRefused:
        return
    yield LET_IT_RUN


def function_reset(target: Target) -> Attack:
    """Row 80b: the function is reset, and set up again."""
    yield LET_IT_RUN
    before = yield from registers(target)
    yield from reset(target.device.function)
    yield from set_up(target, before)
    yield LET_IT_RUN


def bus_reset(target: Target) -> Attack:
    """Row 80c: everything behind the port is reset, and set up again."""
    function = target.device.function
    yield LET_IT_RUN
    before = yield from registers(target)
    (control,) = yield (ConfigRead(function.port.requester, _BRIDGE_CONTROL, 2),)
    assert isinstance(control, int)
    yield (ConfigWrite(function.port.requester, _BRIDGE_CONTROL, control | _BUS_RESET, 2),)
    yield tuple(one for bar, spa, _ in function.bars for one in placed(function, spa, bar))
    yield from set_up(target, before)
    yield LET_IT_RUN


def placed(function: Function, spa: int, bar: int = MEMORY_BAR) -> list[ConfigWrite]:
    """Stores that place a BAR."""
    at = _BAR_AT + 4 * bar
    return [ConfigWrite(function.requester, at + part, spa >> 8 * part & 0xFFFF_FFFF) for part in (0, 4)]


def registers(target: Target) -> _Registers:
    """Ring, fence and head of the victim's driver; ones where nobody but it reads them."""
    base, found = target.device.bar(REGISTER_BAR), {}
    for register, length in ((GpuRegister.RING_BASE, 8), (GpuRegister.FENCE_BASE, 8), (GpuRegister.HEAD, 4)):
        (answer,) = yield (MmioRead(base + register, length),)
        found[register] = answer if isinstance(answer, int) else 0
    return found


def set_up(target: Target, before: dict[GpuRegister, int]) -> Attack:
    """Bring the device to where it was in the driver's ring: it runs as many commands of no kind in a ring of zeros."""
    device = target.device
    base, quiet = device.bar(REGISTER_BAR), device.idle
    yield from enable(device.function, on=True)
    yield (HostWrite(quiet.spa, bytes(PAGE_BYTES), encrypted=target.victim.c_bit),)
    yield WRITE_BACK
    yield (
        MmioWrite(base + GpuRegister.RING_BASE, quiet.gpa, 8),
        MmioWrite(base + GpuRegister.FENCE_BASE, quiet.gpa + _QUIET_FENCE, 8),
        MmioWrite(base + GpuRegister.RING_ENTRIES, _RING_ENTRIES, 4),
        MmioWrite(base + GpuRegister.DOORBELL, before[GpuRegister.HEAD] & 0xFFFF_FFFF, 4),
        MmioWrite(base + GpuRegister.RING_BASE, before[GpuRegister.RING_BASE], 8),
        MmioWrite(base + GpuRegister.FENCE_BASE, before[GpuRegister.FENCE_BASE], 8),
    )
