"""The phase of each machine under KubeVirt's names, as its ``kubevirt_vmi_info`` has it.

A phase there is a VirtualMachineInstancePhase (kubevirt.io/api/core/v1, types.go) in lower case. Of those a fleet here
has five. Nothing is pending, for a machine is placed in the moment in which it arrives; nobody's phase is unknown, for
the page is told by the hosts themselves; a machine that stands still is running there too, and one that moves runs on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from node.guest import GuestState

if TYPE_CHECKING:
    from cluster.control_plane import ControlPlane
    from node.guest import Guest


class VmiPhase(StrEnum):
    """Those that a machine here can be in."""

    SCHEDULING = "scheduling"
    """No host has room for it."""
    SCHEDULED = "scheduled"
    """A host was told to launch it, and has not said that it runs. Where nothing happens on hosts meanwhile the control
    plane is ahead of them, and tells of machines that have a place before they come."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """It powered itself off, and its time is not over. That is final: its host may crash behind it."""
    FAILED = "failed"
    """It powered itself off with a shutdown code, went down with its host or in a move, or no host launched it that
    was told to."""


def phase_of_ended(guest: Guest) -> VmiPhase | None:
    """That of a machine which ended otherwise than by an order, as its host has it; None for any other."""
    if guest.state is GuestState.STOPPED or (guest.state is GuestState.DESTROYED and guest.reason):
        return VmiPhase.SUCCEEDED if guest.powered_off and not guest.shutdown_code else VmiPhase.FAILED
    return None


def vmi_phases(control: ControlPlane, ended: Mapping[tuple[str, str], VmiPhase], now_ns: int) -> dict[str, VmiPhase]:
    """Phases of all machines that do not run, and have a place or should have one at ``now_ns``.

    ``ended`` are those of ``phase_of_ended`` by host and machine, as the hosts have them.
    """
    phases = {
        name: VmiPhase.FAILED if was_tried else VmiPhase.SCHEDULING
        for name, was_tried in control.without_place(now_ns)
    }
    for name, host in control.placement.places().items():
        phase = ended.get((host, name))
        if phase is not None:
            phases[name] = phase
        elif name in control.launching:
            phases[name] = VmiPhase.SCHEDULED
    return phases
