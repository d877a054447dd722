"""What runs in the processes that a host of layout ``isolated`` has beside its own. Nothing here knows Ray.

Each takes bytes and gives bytes, and can say how it fared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cluster.host_entity import firmware_image
from cluster.process_memory import held_bytes
from cluster.shard_worker import portable
from node.hypervisor_server import HypervisorServer
from node.tenant_server import TenantServer
from workloads.library import PROGRAMS


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """How a process fared: operations that it issued, or on a host executed, and the memory that it holds."""

    pid: int
    operations: int
    memory_bytes: int | None

    @classmethod
    def of_this_process(cls, operations: int) -> ProcessFacts:
        """Those of the process that asks."""
        return cls(os.getpid(), operations, held_bytes())


class HypervisorProcess:
    """A host's hypervisor in a process of its own."""

    def __init__(self) -> None:
        self._server = HypervisorServer(firmware_image)

    def exchange(self, request: bytes) -> bytes:
        """A request of ``RemoteHypervisor`` and its reply."""
        return _crossing(self._server.exchange, request)

    def facts(self) -> ProcessFacts:
        """How it fared since it was loaded."""
        return ProcessFacts.of_this_process(self._server.operations)


class TenantProcess:
    """A VM's software in a process of its own."""

    def __init__(self) -> None:
        self._server = TenantServer(PROGRAMS)

    def exchange(self, request: bytes) -> bytes:
        """A request of ``RemoteTenant`` and its reply."""
        return _crossing(self._server.exchange, request)

    def facts(self) -> ProcessFacts:
        """How it fared since it was loaded."""
        return ProcessFacts.of_this_process(self._server.operations)


def _crossing(exchange: Callable[[bytes], bytes], request: bytes) -> bytes:
    try:
        return exchange(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the host must get to know it
        raise portable(error) from None
