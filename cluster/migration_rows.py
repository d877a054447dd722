"""The result rows of live migrations and drains."""

from __future__ import annotations

from cluster.layout import Row
from cluster.migration import Migration, Outcome
from cluster.migration_plans import Drain
from node.guest import GuestSpec
from node.sealed_transfer import SEALED


def migration_row(one: Migration, machine: GuestSpec | None = None) -> Row:
    """A row of the table ``migrations``; ``machine`` is what was to move, which a move of one on no host never saw."""
    guest = one.guest or machine
    rounds = [] if one.precopy is None else one.precopy.rounds
    completed = one.outcome is Outcome.COMPLETED
    came_bytes = one.pulled_bytes if completed else one.came_bytes
    return {
        "migration": one.number,
        "vm": one.order.vm,
        "generation": None if guest is None else guest.generation.name,
        "source": one.source or None,
        "destination": one.destination or None,
        "drain": one.order.drain,
        "ordered_ns": one.ordered_ns,
        "started_ns": None if one.started_ns < 0 else one.started_ns,
        "ended_ns": None if one.ended_ns < 0 else one.ended_ns,
        "outcome": one.outcome.value,
        "reason": one.reason or None,
        "setup_ns": None if one.precopy is None else one.precopy.began_copying_ns - one.started_ns,
        "rounds": len(rounds),
        "remaining_bytes": rounds[-1].left_bytes if rounds else None,
        "dirty_bytes_per_s": rounds[-1].dirty_bytes_per_s if rounds else None,
        "throttle_ratio": 0.0 if one.precopy is None else one.precopy.throttle,
        "expected_downtime_ns": one.expected_downtime_ns if rounds else None,
        "bytes": sum(round_.size_bytes for round_ in rounds) + one.final_bytes + came_bytes,
        "zero_bytes": one.zero_bytes,
        "wire_bytes": one.wire_bytes,
        "final_bytes": one.final_bytes,
        "post_copy_bytes": came_bytes,
        "post_copy_faults": one.faults,
        "post_copy_ns": one.ran_ahead_ns,
        "post_copy_pauses": one.pauses,
        "post_copy_paused_ns": one.paused_ns,
        "frame_bytes": one.frame_bytes,
        "pages_checked": one.pages_checked,
        "downtime_ns": one.resumed_ns - one.stopped_ns if completed else None,
        "carrier": None if guest is None else _carrier(guest),
        "devices_free_ns": None if one.devices_free_ns < 0 else one.devices_free_ns,
        "devices_settled_ns": None if one.devices_settled_ns < 0 else one.devices_settled_ns,
        "devices": _devices(one),
    }


def _carrier(guest: GuestSpec) -> str:
    """Who has its memory in hand on the way."""
    if guest.migration_handler:
        return "handler and agents" if guest.migration_agent else "handler"
    if guest.migration_agent:
        return "agents"
    return "firmware" if guest.generation in SEALED else "hosts"


def _devices(one: Migration) -> str | None:
    """How it uses what it found at its target, once it has said so."""
    if one.devices_settled_ns < 0:
        return None
    trusted, devices = one.trusted
    return "trusted" if trusted == devices else "bounce buffers" if not trusted else f"{trusted} of {devices} trusted"


def phase_rows(one: Migration) -> list[Row]:
    """Its rows of the table ``migration_phases``."""
    return [
        {"migration": one.number, "step": step, "phase": phase.value, "at_ns": at_ns}
        for step, (phase, at_ns) in enumerate(one.history)
    ]


def round_rows(one: Migration) -> list[Row]:
    """Its rows of the table ``migration_rounds``."""
    rounds = [] if one.precopy is None else one.precopy.rounds
    return [
        {
            "migration": one.number, "round": number, "began_ns": each.began_ns, "ended_ns": each.ended_ns,
            "bytes": each.size_bytes, "left_bytes": each.left_bytes,
        }
        for number, each in enumerate(rounds)
    ]  # fmt: skip


def drain_row(one: Drain) -> Row:
    """A row of the table ``drains``."""
    return {
        "host": one.host,
        "asked_ns": one.asked_ns,
        "ended_ns": None if one.ended_ns < 0 else one.ended_ns,
        "result": one.result,
    }
