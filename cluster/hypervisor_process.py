"""What runs in the process of a host's hypervisor. Nothing here knows Ray."""

from __future__ import annotations

from cluster.firmware_key import firmware_image
from cluster.process_channel import DoorKey, serve
from cluster.process_facts import ProcessFacts
from node.hypervisor_server import HypervisorServer


class HypervisorProcess:
    """One host's hypervisor at a time."""

    def __init__(self) -> None:
        self._server = HypervisorServer(firmware_image)

    def serve(self, door: DoorKey) -> None:
        """Reply to a host until it is gone."""
        serve(door, self.exchange)

    def exchange(self, request: bytes) -> bytes:
        """Reply to a request of ``RemoteHypervisor``; to an empty one with how it fared since it was loaded."""
        return self._server.exchange(request) if request else self.facts().pack()

    def facts(self) -> ProcessFacts:
        """How it fared."""
        return ProcessFacts.of_this_process(self._server.operations)
