"""Processes that a host has started and cannot use."""

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.hypervisor_process import HypervisorProcess
from cluster.layout import LayoutError
from cluster.lent_processes import LentProcesses
from cluster.ray_cluster import Actors, Raised

LACK = "FileNotFoundError: the driver's code is not on this machine as it was, and none came with the job"


class WithoutCode(Actors):
    """Its actors were not let in."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = 0

    def spawn(self, kind: type, *arguments: object) -> Any:
        return self

    def call(self, method: str, *arguments: object) -> None:
        assert method == "serve"

    def kill(self, actor: Any) -> None:
        self.killed += 1

    def settled(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        return [Raised(ImportError(LACK)) for _ in calls]


def test_a_process_that_does_not_get_the_code_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody installed another version while a run was under way."""
    monkeypatch.setattr("cluster.lent_processes.LOOK_S", 0.01)
    actors = WithoutCode()
    process = LentProcesses(actors).lend(HypervisorProcess, "hypervisor of rack")
    with pytest.raises(LayoutError, match=f"^hypervisor of rack: {LACK}$"):
        process.exchange(b"")
    assert (process.lost, actors.killed) == (True, 1)
