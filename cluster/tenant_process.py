"""What runs in the process of a VM's software. Nothing here knows Ray, and little else: every VM has one."""

from __future__ import annotations

from cluster.process_channel import DoorKey, serve
from cluster.process_facts import ProcessFacts
from node.tenant_server import TenantServer
from workloads.library import PROGRAMS


class TenantProcess:
    """One VM's software at a time."""

    def __init__(self) -> None:
        self._server = TenantServer(PROGRAMS)

    def serve(self, door: DoorKey) -> None:
        """Reply to a host until it is gone."""
        serve(door, self.exchange)

    def exchange(self, request: bytes) -> bytes:
        """Reply to a request of ``RemoteTenant``; to an empty one with how it fared since it was loaded."""
        return self._server.exchange(request) if request else self.facts().pack()

    def facts(self) -> ProcessFacts:
        """How it fared."""
        return ProcessFacts.of_this_process(self._server.operations)
