"""Ray's own processes, of a Ray that this process started: which there are, which are gone, and which stand still.

Ray waits for one that is gone for up to a minute, for one that stands still for ever, and tells nobody. So it is
handed in here, and reached into.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.daemon_watch import STILL_S
from cluster.process_family import Process, family, is_stopped


class RayDaemons:
    """Those of ``ray``: none of one that was joined, where they are not ours, nor before there is one (None)."""

    def __init__(self, ray: Any = None) -> None:
        self._ray = ray
        self._still: dict[str, float] = {}
        """Which were seen to stand still, and since when."""

    @property
    def _node(self) -> Any:
        return None if self._ray is None else getattr(self._ray._private.worker, "_global_node", None)  # noqa: SLF001

    def _found(self) -> dict[str, list[int]]:
        daemons = {} if (node := self._node) is None else node.all_processes
        return {kind: [one.process.pid for one in found] for kind, found in daemons.items()}

    def family(self) -> frozenset[Process]:
        """These processes and all below them, as far as they hang together now."""
        return family(pid for pids in self._found().values() for pid in pids)

    def are_well(self) -> bool:
        """Whether all are there and go on."""
        return self._dead() is None and not self._stopped()

    def trouble(self) -> str | None:
        """One that is gone, or that looks have found to stand still for ``STILL_S``, by its name and what it does."""
        if (dead := self._dead()) is not None:
            return f"{dead} ended unexpectedly"
        now_s = time.monotonic()
        self._still = {kind: self._still.get(kind, now_s) for kind in self._stopped()}
        for kind, since_s in self._still.items():
            if now_s - since_s >= STILL_S:
                return f"{kind} has stood still for {now_s - since_s:.0f} s"
        return None

    def _dead(self) -> str | None:
        return None if (node := self._node) is None else next((kind for kind, _ in node.dead_processes()), None)

    def _stopped(self) -> list[str]:
        return [kind for kind, pids in self._found().items() if any(is_stopped(pid) for pid in pids)]
