"""How a process of layout ``isolated`` fared, as it says itself."""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass

import msgpack

from cluster.machine import held_bytes


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Its number, the operations that it issued (a host: executed), and the memory that it holds."""

    pid: int
    operations: int
    memory_bytes: int | None

    @classmethod
    def of_this_process(cls, operations: int) -> ProcessFacts:
        """Those of the process that asks."""
        return cls(os.getpid(), operations, held_bytes())

    def pack(self) -> bytes:
        """As msgpack."""
        packed: bytes = msgpack.packb(astuple(self))
        return packed

    @classmethod
    def parse(cls, data: bytes) -> ProcessFacts:
        """Back from msgpack."""
        return cls(*msgpack.unpackb(data))
