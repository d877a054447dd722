"""The programs that a scenario may name, and the check of what it says about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node.program import ProgramFactory, ProgramSpec, Scalar
from workloads.attesting import Attesting, AttestingParameters
from workloads.compile_job import CompileJob, CompileParameters
from workloads.key_value_client import ClientParameters, KeyValueClient
from workloads.key_value_server import KeyValueServer, ServerParameters
from workloads.key_value_store import KeyValueParameters, KeyValueStore
from workloads.parameters import Parameters, WorkloadParameterError, parameters_from
from workloads.random_access import RandomAccess, RandomAccessParameters
from workloads.stream import Stream, StreamParameters
from workloads.trace_player import PlayerParameters, TracePlayer

__all__ = [
    "NETWORKED",
    "PARAMETERS",
    "PROGRAMS",
    "Footprint",
    "WorkloadParameterError",
    "footprint",
    "validate_parameters",
]

PROGRAMS: Mapping[str, ProgramFactory] = MappingProxyType({
    "key-value-store": KeyValueStore.build,
    "key-value-server": KeyValueServer.build,
    "key-value-client": KeyValueClient.build,
    "stream": Stream.build,
    "random-access": RandomAccess.build,
    "compile-job": CompileJob.build,
    "trace-player": TracePlayer.build,
    "attesting": Attesting.build,
})  # fmt: skip
"""How each program is built from its specification and placement."""

PARAMETERS: Mapping[str, type[Parameters]] = MappingProxyType({
    "key-value-store": KeyValueParameters,
    "key-value-server": ServerParameters,
    "key-value-client": ClientParameters,
    "stream": StreamParameters,
    "random-access": RandomAccessParameters,
    "compile-job": CompileParameters,
    "trace-player": PlayerParameters,
    "attesting": AttestingParameters,
})  # fmt: skip
"""What each program may be told."""


NETWORKED = frozenset({"key-value-server", "key-value-client"})
"""Programs whose vCPUs have network cards."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that one vCPU's program needs, and its part of the disk."""

    private_bytes: int
    shared_bytes: int
    disk_bytes: int


def validate_parameters(name: str, parameters: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """Parameters as a ``ProgramSpec`` holds them, sorted by name; WorkloadParameterError names the first bad one."""
    given = tuple(sorted(parameters.items()))
    _parsed(name, given)
    return given


def footprint(spec: ProgramSpec) -> Footprint:
    """What a placement must offer the program of ``spec``."""
    parameters = _parsed(spec.name, spec.parameters)
    return Footprint(parameters.private_bytes, parameters.shared_bytes, parameters.disk_bytes)


def _parsed(name: str, given: Iterable[tuple[str, Scalar]]) -> Parameters:
    if name not in PARAMETERS:
        raise WorkloadParameterError("workload", f"one of {', '.join(PARAMETERS)}")
    return parameters_from(PARAMETERS[name], given)
