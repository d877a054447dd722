"""The programs that a scenario may name, and the check of what it says about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node.program import ProgramFactory, ProgramSpec, Scalar
from workloads import attested_start
from workloads.attested_start import AttestedStart
from workloads.attesting import AttestingParameters
from workloads.compile_job import CompileParameters
from workloads.device_work import DEVICE_WORK, DeviceParameters
from workloads.idle import NAME as IDLE
from workloads.idle import IdleParameters
from workloads.key_value_client import ClientParameters
from workloads.key_value_server import ServerParameters
from workloads.key_value_store import KeyValueParameters
from workloads.parameters import Parameters, WorkloadParameterError, parameters_from
from workloads.proper_programs import PROPER
from workloads.random_access import RandomAccessParameters
from workloads.relying_party import RelyingParameters
from workloads.sealed_disk import SealedParameters
from workloads.stream import StreamParameters
from workloads.trace_player import PlayerParameters

__all__ = [
    "DEVICE_WORK",
    "NETWORKED",
    "PARAMETERS",
    "PROGRAMS",
    "WORKLOADS",
    "Footprint",
    "WorkloadParameterError",
    "footprint",
    "validate_parameters",
]

WORKLOADS = tuple(PROPER)
"""What a scenario may name."""
PROGRAMS: Mapping[str, ProgramFactory] = MappingProxyType({
    **PROPER,
    attested_start.NAME: AttestedStart.build,
})  # fmt: skip
"""How each program is built from its specification and placement: those, and one that starts any of them."""

PARAMETERS: Mapping[str, type[Parameters]] = MappingProxyType({
    "key-value-store": KeyValueParameters,
    "key-value-server": ServerParameters,
    "key-value-client": ClientParameters,
    "stream": StreamParameters,
    "random-access": RandomAccessParameters,
    "compile-job": CompileParameters,
    "trace-player": PlayerParameters,
    "attesting": AttestingParameters,
    "relying-party": RelyingParameters,
    "device-work": DeviceParameters,
    "sealed-disk": SealedParameters,
    IDLE: IdleParameters,
})  # fmt: skip
"""What each program may be told."""


NETWORKED = frozenset({"key-value-server", "key-value-client", "relying-party", attested_start.NAME})
"""Programs whose vCPUs have network cards."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that one vCPU's program needs, and its part of the disk."""

    private_bytes: int
    shared_bytes: int
    disk_bytes: int
    written_bytes: int
    """Written all over with bytes that nobody looks at, wherever in the machine's memory."""


def validate_parameters(name: str, parameters: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """Parameters as a ``ProgramSpec`` holds them, sorted by name; WorkloadParameterError names the first bad one."""
    given = tuple(sorted(parameters.items()))
    _parsed(name, given)
    return given


def footprint(spec: ProgramSpec) -> Footprint:
    """What a placement must offer the program of ``spec``."""
    if spec.name == attested_start.NAME:
        _, inner = attested_start.unwrapped(spec)
        needs = footprint(inner)
        private, shared = attested_start.PRIVATE_BYTES, attested_start.SHARED_BYTES
        written = needs.written_bytes
        return Footprint(needs.private_bytes + private, needs.shared_bytes + shared, needs.disk_bytes, written)
    parameters = _parsed(spec.name, spec.parameters)
    written = parameters.written_set_bytes if isinstance(parameters, PlayerParameters) else 0
    return Footprint(parameters.private_bytes, parameters.shared_bytes, parameters.disk_bytes, written)


def _parsed(name: str, given: Iterable[tuple[str, Scalar]]) -> Parameters:
    if name not in PARAMETERS:
        raise WorkloadParameterError("workload", f"one of {', '.join(PARAMETERS)}")
    return parameters_from(PARAMETERS[name], given)
