"""A guest's specification as it crosses between control plane and hosts."""

from __future__ import annotations

from node.generation import Generation
from node.guest import GuestSpec
from node.program import ProgramSpec, Scalar

GuestBody = tuple[str, str, int, int, str, tuple[tuple[str, Scalar], ...], int, str, str]


def guest_body(guest: GuestSpec) -> GuestBody:
    """A guest's specification as msgpack-able values."""
    program = guest.program
    return (
        guest.name, guest.generation.name, guest.vcpus, guest.memory_bytes,
        program.name, program.parameters, guest.seed, guest.firmware, guest.disk,
    )  # fmt: skip


def guest_of(body: GuestBody) -> GuestSpec:
    """The specification back from its values."""
    name, generation, vcpus, memory, program, parameters, seed, firmware, disk = body
    spec = ProgramSpec(program, parameters)
    return GuestSpec(name, Generation[generation], vcpus, memory, spec, seed, firmware, disk)
