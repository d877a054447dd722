"""How a program's block ends when an answer is not what it must be."""

from __future__ import annotations

from node.device_window import DeviceSilent
from node.guest_gpu import GpuUntrusted
from node.guest_nic import NicUntrusted
from node.guest_nvme import NvmeUntrusted
from node.operations import Answer, Fault, Shutdown
from node.program import Block
from node.swiotlb import BounceBuffersFull, BounceFault

WRONG_ANSWER = Shutdown(1)
"""Memory or a device returned something else than was stored."""

FAULTED = Shutdown(2)
"""An operation faulted, or the disk reported an error."""

NOBODY_ANSWERED = Shutdown(3)
"""Requests over the network were answered by nobody, however often they were sent."""

UNTRUSTED = Shutdown(4)
"""A device said what no device of its kind does, or nothing."""


def with_devices(block: Block) -> Block:
    """A block that uses drivers; what they raise ends the VM."""
    try:
        return (yield from block)
    except (BounceFault, BounceBuffersFull):
        return FAULTED
    except (NicUntrusted, NvmeUntrusted, GpuUntrusted, DeviceSilent):
        return UNTRUSTED


def faulted(answers: tuple[Answer, ...]) -> bool:
    """Whether any operation of a batch faulted."""
    return Fault in map(type, answers)


def loaded(answers: tuple[Answer, ...]) -> list[bytes] | None:
    """The answers of a batch of loads; None if one is not bytes."""
    data = [answer for answer in answers if isinstance(answer, bytes)]
    return data if len(data) == len(answers) else None
