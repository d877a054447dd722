"""A dictionary by the names of VMs that is asked before it is filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

V = TypeVar("V")


class ByVm(dict[str, V]):
    """What somebody has of each VM. ``look`` hears of a VM that is asked for and not found, and may bring it.

    It hears of nothing else: who takes a VM out, counts them or goes through them all finds only those that were asked
    for. What waits to be asked for is of PLAIN VMs, which nothing that a hypervisor does for all of its VMs is about.
    """

    def __init__(self, look: Callable[[str], bool]) -> None:
        super().__init__()
        self._look = look

    def __missing__(self, vm: str) -> V:
        if self._look(vm):
            return super().__getitem__(vm)
        raise KeyError(vm)

    def __contains__(self, vm: object) -> bool:
        return super().__contains__(vm) or (isinstance(vm, str) and self._look(vm))

    def get(self, vm: str, default: V | None = None) -> V | None:  # type: ignore[override]
        """As of any dictionary."""
        found = super().get(vm)
        if found is None and self._look(vm):
            found = super().get(vm)
        return default if found is None else found
