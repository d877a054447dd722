"""The result rows of one VM: what it was, what it did and where its vCPUs' time went."""

from __future__ import annotations

from collections import Counter

from node.guest import Guest, GuestState
from node.guest_books import mechanism_ns, retired
from node.host import Host
from node.mechanism import Mechanism
from node.vcpu import names_of
from workloads.attested_start import proper_name

Rows = dict[str, list[dict[str, object]]]

_STATES = {
    GuestState.LAUNCHING: "launching",
    GuestState.RUNNING: "running",
    GuestState.PAUSED: "running",
    GuestState.STOPPED: "ended",
    GuestState.DESTROYED: "ended",
    GuestState.REFUSED: "refused",
}


def guest_rows(host: Host, guest: Guest) -> Rows:
    """Rows for the tables ``vms``, ``phases`` and ``vm_time``; none for a VM whose books another host has."""
    if guest.state in (GuestState.ARRIVING, GuestState.DEPARTED):
        return {}  # Its books are, or still are, on another host.
    spec = guest.spec
    # How it ended itself stays true, also where its host crashed behind it or its time was over.
    code = guest.shutdown_code
    reason = f"shutdown code {code}" if code else "" if guest.powered_off else guest.reason
    ran = guest.running_ns >= 0
    over = guest.state in (GuestState.STOPPED, GuestState.DESTROYED, GuestState.REFUSED)
    times = mechanism_ns(guest)
    return {
        "vms": [
            {
                "vm": spec.name,
                "generation": spec.generation.name,
                "workload": proper_name(spec.program),
                "host": host.spec.name,
                "vcpus": spec.vcpus,
                "memory_bytes": spec.memory_bytes,
                "asid": guest.asid or None,
                "arrival_ns": guest.ordered_ns,
                "running_ns": guest.running_ns if ran else None,
                "ended_ns": guest.ended_ns if over else None,
                "state": "failed" if code else _STATES[guest.state],
                "reason": reason or None,
                "launch_digest": guest.launch_digest or None,
                "launch_tcb": None if guest.launch_tcb is None else f"{guest.launch_tcb:016x}",
                "launch_ns": guest.running_ns - guest.ordered_ns if ran else None,
                "psp_wait_ns": guest.psp_wait_ns,
                "psp_service_ns": guest.psp_service_ns,
                "units_of_work": guest.units_of_work,
                "instructions": round(sum(sum([done for _, done in retired(vcpu)]) for vcpu in guest.vcpus)),
                "active_ns": sum(vcpu.elapsed_ns for vcpu in guest.vcpus),
                "operations": guest.operations,
                "faults": guest.faults,
                "bytes_read": guest.bytes_read,
                "bytes_written": guest.bytes_written,
                "bytes_bounced": guest.bytes_bounced,
                "copies": guest.copies,
            }
        ],
        "disks": _disk_rows(guest),
        "svsms": []
        if guest.svsm is None
        else [{"vm": spec.name, "calls": guest.svsm.calls, "time_ns": guest.svsm.time_ns}],
        "networks": _network_rows(guest),
        "vm_time": [
            {"vm": spec.name, "mechanism": mechanism.value, "time_ns": times[mechanism]} for mechanism in Mechanism
        ]
        if ran
        else [],
        "vm_rows": [
            {"vm": spec.name, "row": row, "time_ns": ns} for row, ns in sorted(guest.row_ns.items()) if ns and ran
        ],
        "phases": _phase_rows(guest),
    }


def _disk_rows(guest: Guest) -> list[dict[str, object]]:
    books = guest.disk
    if books is None:
        return []
    served = books.reads + books.writes
    return [
        {
            "vm": guest.spec.name,
            "reads": books.reads,
            "writes": books.writes,
            "errors": books.errors,
            "bytes_read": books.bytes_read,
            "bytes_written": books.bytes_written,
            "time_ns": books.time_ns,
            "latency_mean_ns": books.time_ns / served if served else None,
            "latency_longest_ns": books.longest_ns if served else None,
        }
    ]


def _network_rows(guest: Guest) -> list[dict[str, object]]:
    books = guest.network
    if books is None:
        return []
    came = books.frames_received
    return [
        {
            "vm": guest.spec.name,
            "frames_sent": books.frames_sent,
            "bytes_sent": books.bytes_sent,
            "frames_received": came,
            "bytes_received": books.bytes_received,
            "frames_refused": books.refused,
            "frames_missed": books.missed,
            "frames_malformed": books.malformed,
            "device_errors": books.errors,
            "delay_mean_ns": books.delay_ns / came if came else None,
            "delay_longest_ns": books.longest_ns if came else None,
        }
    ]


def _phase_rows(guest: Guest) -> list[dict[str, object]]:
    instructions: dict[str, float] = {}
    phases: Counter[str] = Counter()
    for vcpu in guest.vcpus:
        names = names_of(guest.demands[vcpu.index])
        for number, done in retired(vcpu):
            name = names[number]
            instructions[name] = instructions.get(name, 0.0) + done
            phases[name] += vcpu.phases.get(number, 0)
    return [
        {"vm": guest.spec.name, "demand": name, "phases": phases[name], "instructions": round(done)}
        for name, done in sorted(instructions.items())
        if done
    ]
