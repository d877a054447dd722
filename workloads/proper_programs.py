"""The programs that do a tenant's work, each built from its specification and placement."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from node.program import ProgramFactory
from workloads.attesting import Attesting
from workloads.compile_job import CompileJob
from workloads.device_work import DeviceWork
from workloads.idle import NAME as IDLE
from workloads.idle import Idle
from workloads.key_value_client import KeyValueClient
from workloads.key_value_server import KeyValueServer
from workloads.key_value_store import KeyValueStore
from workloads.random_access import RandomAccess
from workloads.relying_party import RelyingParty
from workloads.sealed_disk import SealedDisk
from workloads.stream import Stream
from workloads.trace_player import TracePlayer

PROPER: Mapping[str, ProgramFactory] = MappingProxyType({
    "key-value-store": KeyValueStore.build,
    "key-value-server": KeyValueServer.build,
    "key-value-client": KeyValueClient.build,
    "stream": Stream.build,
    "random-access": RandomAccess.build,
    "compile-job": CompileJob.build,
    "trace-player": TracePlayer.build,
    "attesting": Attesting.build,
    "relying-party": RelyingParty.build,
    "sealed-disk": SealedDisk.build,
    "device-work": DeviceWork.build,
    IDLE: Idle.build,
})  # fmt: skip
"""By the name that a scenario gives."""
