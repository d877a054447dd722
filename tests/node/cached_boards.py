"""Hosts whose cores have caches, and a hypervisor that can be made to leave its duties out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from node import operations as op
from node.board import Board
from node.guest import Guest
from node.host import Host


def forgetful(board: Board, *omitted: type) -> None:
    """From now on operations of some kinds are left out of every batch, and answered as if they had been done."""
    real = board.execute_host

    def without(batch: Sequence[op.HypervisorOperation]) -> tuple[op.Answer, ...]:
        return tuple([None if type(one) in omitted else real((one,))[0] for one in batch])

    board.execute_host = without  # type: ignore[method-assign]


def drive(board: Board, task: Generator[Any, Any, Any]) -> Any:
    """Run a task of a hypervisor to its end."""
    try:
        batch = next(task)
        while True:
            batch = task.send(board.execute_host(batch))
    except StopIteration as done:
        return done.value


def by_guest(host: Host, guest: Guest, *batch: op.GuestOperation) -> tuple[op.Answer, ...]:
    return host.board.execute_guest(host.board.vmcb(guest.spec.name, 0), batch)


def by_host(host: Host, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return host.board.execute_host(batch)


def base(guest: Guest) -> int:
    return guest.spec.memory.placement(guest.spec.name, 0, 0).base_gpa


def shared(guest: Guest) -> int:
    return guest.spec.memory.placement(guest.spec.name, 0, 0).shared_gpa


__all__ = ["base", "by_guest", "by_host", "drive", "forgetful", "shared"]
