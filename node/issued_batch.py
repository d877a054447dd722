"""A guest's batch while its time passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from node.operations import Answer, GuestOperation

if TYPE_CHECKING:
    from node.vcpu import Vcpu


class IssuedBatch:
    """What SimPy's loop needs of an event that cannot fail, and what takes effect then."""

    __slots__ = ("batch", "before", "callbacks", "epoch", "spent", "vcpu")
    _ok = True

    def __init__(
        self, callbacks: tuple[Callable[[IssuedBatch], None], ...], vcpu: Vcpu, batch: tuple[GuestOperation, ...],
        spent: int, before: tuple[Answer, ...],
    ) -> None:
        self.callbacks = callbacks
        self.vcpu = vcpu
        self.batch = batch
        self.spent = spent
        self.before = before
        """What the batch's begin was answered before it was issued."""
        self.epoch = vcpu.epoch
        """Of the vCPU: it does not take effect if that was stopped meanwhile."""
