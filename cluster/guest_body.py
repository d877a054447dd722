"""A guest's specification as it crosses between control plane and hosts."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from operator import attrgetter

import msgpack

from node.generation import Generation
from node.guest import GuestSpec
from node.kernel_settings import KernelSettings
from node.packing import Unmade, packed
from node.program import ProgramSpec
from tio.device_identity import CardKind

_kernel_body = attrgetter(*[field.name for field in fields(KernelSettings)])
"""Every setting, in order."""


def guest_body(guest: GuestSpec) -> bytes:
    """A guest's specification as msgpack."""
    program = guest.program
    return packed(
        (
            guest.name, guest.generation.name, guest.vcpus, guest.memory_bytes,
            program.name, program.parameters, guest.seed, guest.firmware, guest.disk, guest.network,
            guest.sev_features, guest.svsm, _kernel_body(guest.kernel), guest.owned,
            guest.sev_policy, tuple([one.value for one in guest.devices]), guest.migration_agent,
            guest.migration_handler, guest.cpu_model, guest.launched_on,
        )
    )  # fmt: skip


class GuestBody(Unmade):
    """A guest's specification on its way to a host: itself in this process, as ``guest_body`` where it leaves it."""

    __slots__ = ("guest",)

    def __init__(self, guest: GuestSpec) -> None:
        self.guest = guest

    def made(self) -> bytes:
        """The msgpack."""
        return guest_body(self.guest)


def guest_of(body: bytes | GuestBody) -> GuestSpec:
    """The specification back; a VM that comes again has the same object."""
    return body.guest if isinstance(body, GuestBody) else _guest_of(body)


@lru_cache(maxsize=4096)
def _guest_of(body: bytes) -> GuestSpec:
    *values, kernel, owned, policy, devices, agent, handler, model, launched_on = msgpack.unpackb(body, use_list=False)
    name, generation, vcpus, memory, program, parameters, seed, firmware, disk, network, sev_features, svsm = values
    return GuestSpec(
        name, Generation[generation], vcpus, memory, ProgramSpec(program, parameters), seed, firmware, disk, network,
        sev_features, svsm, KernelSettings(*kernel), owned, policy,
        tuple([CardKind(one) for one in devices]), agent, handler, model, launched_on,
    )  # fmt: skip
