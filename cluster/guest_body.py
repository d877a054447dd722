"""A guest's specification as it crosses between control plane and hosts."""

from __future__ import annotations

from dataclasses import astuple

from node.generation import Generation
from node.guest import GuestSpec
from node.kernel_settings import KernelSettings
from node.program import ProgramSpec, Scalar

GuestBody = tuple[str, str, int, int, str, tuple[tuple[str, Scalar], ...], int, str, tuple[bool, ...]]


def guest_body(guest: GuestSpec) -> GuestBody:
    """A guest's specification as msgpack-able values."""
    program = guest.program
    return (
        guest.name, guest.generation.name, guest.vcpus, guest.memory_bytes,
        program.name, program.parameters, guest.seed, guest.firmware,
        astuple(guest.kernel),
    )  # fmt: skip


def guest_of(body: GuestBody) -> GuestSpec:
    """The specification back from its values."""
    name, generation, vcpus, memory, program, parameters, seed, firmware, kernel = body
    return GuestSpec(
        name, Generation[generation], vcpus, memory, ProgramSpec(program, parameters), seed, firmware,
        KernelSettings(*kernel),
    )  # fmt: skip
