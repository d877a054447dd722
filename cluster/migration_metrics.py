"""Migrations on the metrics page: under names of sevfleet's own, and under KubeVirt's, for dashboards that know those.

KubeVirt's names, types and labels: pkg/monitoring of kubevirt/kubevirt (main, August 2026) and its page
docs/observability/metrics.md. Times are virtual seconds here. A node is a host, a namespace is always the same, and a
VirtualMachineInstanceMigration is called after the number in the table ``migrations``. As there, five migrations of a
machine that are over are told, nothing of a machine that is gone, and times only of the last one that came to copying.
data_total_bytes is the name that data_bytes_total had before; KubeVirt keeps it by a recording rule, so it has no type.
A machine counts as non-evictable when its host refused its last move, and who was never to move is not told.

KubeVirt has no downtimes yet: their names are those of its open pull request 17974, and may change with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)

from cluster.migration_figures import (
    BOUNDS_S,
    DOWNTIME_BOUNDS_S,
    PENDING,
    RUNNING,
    SCHEDULING,
    MigrationFigures,
    MoveFigures,
    Times,
    succeeded,
)
from cluster.vmi_phases import VmiPhase

_NAMESPACE = "sevfleet"
_Family = type[CounterMetricFamily | GaugeMetricFamily | UnknownMetricFamily]
_KUBEVIRT: Mapping[str, tuple[_Family, str, Callable[[MoveFigures], float]]] = {
    "data_bytes": (CounterMetricFamily, "Memory of the machine.", lambda one: one.total_bytes),
    "data_total_bytes": (UnknownMetricFamily, "Deprecated name of data_bytes_total.", lambda one: one.total_bytes),
    "data_processed_bytes": (GaugeMetricFamily, "Memory sent so far.", lambda one: one.processed_bytes),
    "data_remaining_bytes": (
        GaugeMetricFamily, "Memory left of the present round, or of post-copy.", lambda one: one.remaining_bytes
    ),
    "dirty_memory_rate_bytes": (
        GaugeMetricFamily, "Distinct bytes written a second.", lambda one: one.dirty_bytes_per_s
    ),
    "memory_transfer_rate_bytes": (
        GaugeMetricFamily, "Bytes on the wire a second.", lambda one: one.transfer_bytes_per_s
    ),
}  # fmt: skip
"""By name; that of a counter gets its ``_total`` from the client."""
_UNSET = "unset"
_OWN: Mapping[str, tuple[str, Callable[[MoveFigures], float | None]]] = {
    "rounds": ("Rounds of pre-copy that are through.", lambda one: one.rounds),
    "throttle_ratio": ("Share of time for which its vCPUs are made to stand still.", lambda one: one.throttle_ratio),
    "slowed_ratio": ("Share of its time that the migration costs the machine.", lambda one: one.slowed_ratio),
    "expected_downtime_seconds": ("Downtime if it were stopped now.", lambda one: one.expected_downtime_s),
}
_MACHINE = ("node", "namespace", "name")
_ENDS = ("vm", "source", "destination")
_UNTOLD = (
    "os", "workload", "flavor", "instance_type", "preference", "guest_os_kernel_release", "guest_os_machine",
    "guest_os_arch", "guest_os_name", "guest_os_version_id", "vmi_pod",
)  # fmt: skip
_STATES = ("evictable", "outdated")


def migration_families(now: MigrationFigures, vmi_phases: Mapping[str, str]) -> Iterator[Metric]:
    """The families of one glance; ``vmi_phases`` are those of machines that do not run."""
    for phase in (PENDING, SCHEDULING, RUNNING, _UNSET):
        name = f"kubevirt_vmi_migrations_in_{phase}_phase"
        yield GaugeMetricFamily(name, f"Migrations that are {phase}.", now.phases.get(phase, 0))
    yield _machines(now, vmi_phases)
    yield from _final_moves(now)
    for name, (kind, text, figure) in _KUBEVIRT.items():
        under_way = kind(f"kubevirt_vmi_migration_{name}", text, labels=_MACHINE)
        for one in now.moves:
            under_way.add_metric((one.node, _NAMESPACE, one.vm), figure(one))
        yield under_way
    yield from _last_moves(now)
    yield from _downtimes(now)
    yield _histogram(
        "migration_phase_transition_time_from_creation_seconds", "Virtual time from a migration's order to the phase.",
        "phase", now.transitions, BOUNDS_S,
    )  # fmt: skip
    ended = GaugeMetricFamily("sevfleet_migrations", "Migrations that are over, by outcome.", labels=("outcome",))
    for outcome, count in sorted(now.outcomes.items()):
        ended.add_metric((outcome,), count)
    yield ended
    for name, (text, known) in _OWN.items():
        family = GaugeMetricFamily(f"sevfleet_migration_{name}", text, labels=_ENDS)
        for one in now.moves:
            value = known(one)
            if value is not None:
                family.add_metric((one.vm, one.source, one.destination), value)
        yield family
    sent = GaugeMetricFamily("sevfleet_migration_sent_bytes", "Memory sent so far, by when.", labels=(*_ENDS, "kind"))
    for one in now.moves:
        for kind_of, count in one.sent_bytes.items():
            sent.add_metric((one.vm, one.source, one.destination, kind_of), count)
    yield sent
    last = GaugeMetricFamily(
        "sevfleet_migration_last_info", "How a machine's last migration ended, and why.",
        labels=("vm", "migration", "outcome", "reason"),
    )  # fmt: skip
    for final in {one.vm: one for one in now.final}.values():
        last.add_metric((final.vm, final.name, final.outcome, final.reason), 1)
    yield last


def _machines(now: MigrationFigures, phases: Mapping[str, str]) -> Metric:
    """Every machine that has a place, or that no host took. To Prometheus an empty label is none.

    What only an agent in the guest, a pod or an annotation would tell is empty.
    """
    family = GaugeMetricFamily(
        "kubevirt_vmi_info", "What a machine is, and where.", labels=(*_MACHINE, "phase", *_UNTOLD, *_STATES)
    )
    nothing = ("",) * len(_UNTOLD)
    for vm in sorted(now.places.keys() | phases.keys()):
        host = now.places.get(vm, "")
        evictable = not now.bound.get((vm, host), False)
        state = str(evictable).lower(), "false"
        family.add_metric((host, _NAMESPACE, vm, phases.get(vm, VmiPhase.RUNNING), *nothing, *state), 1)
    return family


def _final_moves(now: MigrationFigures) -> Iterator[Metric]:
    """One for each move that is over and still known."""
    labels = "vmi", "vmim", "namespace"
    good = GaugeMetricFamily("kubevirt_vmi_migration_succeeded", "A migration that succeeded.", labels=labels)
    bad = GaugeMetricFamily("kubevirt_vmi_migration_failed", "A migration that did not succeed.", labels=labels)
    for one in now.final:
        (good if succeeded(one.outcome) else bad).add_metric((one.vm, one.name, _NAMESPACE), 1)
    yield good
    yield bad


def _last_moves(now: MigrationFigures) -> Iterator[Metric]:
    """When each machine's last move began and ended; one under way has not ended."""
    began = GaugeMetricFamily(
        "kubevirt_vmi_migration_start_time_seconds", "Virtual time at which it began.",
        labels=(*_MACHINE, "migration_name"),
    )  # fmt: skip
    ended = GaugeMetricFamily(
        "kubevirt_vmi_migration_end_time_seconds", "Virtual time at which it ended.",
        labels=(*_MACHINE, "migration_name", "status"),
    )  # fmt: skip
    bound = GaugeMetricFamily(
        "kubevirt_vmi_non_evictable", "Whether the machine cannot be moved, as its host has said.", labels=_MACHINE
    )
    under_way = {one.vm for one in now.moves}
    for move in now.moves:
        if move.started_s is not None:
            began.add_metric((move.node, _NAMESPACE, move.vm, move.name), move.started_s)
    for last in now.ended:
        if last.vm not in under_way:
            of = last.node, _NAMESPACE, last.vm, last.name
            began.add_metric(of, last.started_s)
            ended.add_metric((*of, "succeeded" if last.succeeded else "failed"), last.ended_s)
    for (vm, node), refused in now.bound.items():
        bound.add_metric((node, _NAMESPACE, vm), float(refused))
    yield began
    yield ended
    yield bound


def _downtimes(now: MigrationFigures) -> Iterator[Metric]:
    """For how long machines really stood still; KubeVirt's node is the source."""
    own = GaugeMetricFamily("sevfleet_migration_downtime_seconds", "Downtime of the last that succeeded.", labels=_ENDS)
    last = GaugeMetricFamily(
        "kubevirt_vmi_migration_last_downtime_seconds", "Downtime of the last migration that succeeded.",
        labels=_MACHINE,
    )  # fmt: skip
    for one in now.last_downtimes:
        own.add_metric((one.vm, one.source, one.destination), one.seconds)
        last.add_metric((one.source, _NAMESPACE, one.vm), one.seconds)
    yield own
    yield last
    text = "Virtual time for which machines stood still in migrations that succeeded."
    yield _histogram("migration_downtime_seconds", text, "node", now.downtimes, DOWNTIME_BOUNDS_S)


def _histogram(name: str, text: str, label: str, some: Mapping[str, Times], bounds: Iterable[float]) -> Metric:
    family = HistogramMetricFamily(f"kubevirt_vmi_{name}", text, labels=(label,))
    for value, one in sorted(some.items()):
        buckets = [(str(float(bound)), count) for bound, count in zip(bounds, one.within, strict=True)]
        family.add_metric((value,), [*buckets, ("+Inf", one.count)], one.sum_s)
    return family
