"""Migrations on the metrics page: under names of sevfleet's own, and under KubeVirt's, for dashboards that know those.

KubeVirt's names, types and labels: docs/observability/metrics.md and pkg/monitoring/metrics of kubevirt/kubevirt, with
the older name of data_bytes_total, which recording rules still give. Its nodes are hosts, its objects are called after
the migrations' numbers, and its times are virtual seconds; nobody waits to be looked at (unset). When a machine's move
began and ended is told of its last. A machine counts as non-evictable when its host refused its last move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.migration_figures import (
    BOUNDS_S,
    DOWNTIME_BOUNDS_S,
    PENDING,
    RUNNING,
    SCHEDULING,
    EndedMove,
    MigrationFigures,
    MoveFigures,
    Transitions,
)

_NAMESPACE = "sevfleet"
_KUBEVIRT: Mapping[str, tuple[type[Metric], str, Callable[[MoveFigures], float]]] = {
    "data_bytes": (CounterMetricFamily, "Memory of the machine.", lambda one: one.total_bytes),
    "data_total_bytes": (GaugeMetricFamily, "The same under its older name.", lambda one: one.total_bytes),
    "data_processed_bytes": (GaugeMetricFamily, "Memory sent so far.", lambda one: one.processed_bytes),
    "data_remaining_bytes": (
        GaugeMetricFamily, "Memory left of the present round, or of post-copy.", lambda one: one.remaining_bytes
    ),
    "dirty_memory_rate_bytes": (
        GaugeMetricFamily, "Distinct bytes written a second.", lambda one: one.dirty_bytes_per_s
    ),
    "memory_transfer_rate_bytes": (GaugeMetricFamily, "Memory sent a second.", lambda one: one.transfer_bytes_per_s),
}  # fmt: skip
"""A counter's samples end in _total."""
_UNSET = "unset"
_OWN: Mapping[str, tuple[str, Callable[[MoveFigures], float]]] = {
    "rounds": ("Rounds of pre-copy that are through.", lambda one: one.rounds),
    "throttle_ratio": ("Share of time for which its vCPUs are made to stand still.", lambda one: one.throttle_ratio),
    "slowed_ratio": ("Share of its time that the migration costs the machine.", lambda one: one.slowed_ratio),
    "expected_downtime_seconds": ("Downtime if it were stopped now.", lambda one: one.expected_downtime_s),
}


def migration_families(now: MigrationFigures) -> Iterator[Metric]:
    """The families of one glance."""
    for phase in (PENDING, SCHEDULING, RUNNING, _UNSET):
        name = f"kubevirt_vmi_migrations_in_{phase}_phase"
        yield GaugeMetricFamily(name, f"Migrations that are {phase}.", now.phases.get(phase, 0))
    ended = GaugeMetricFamily("sevfleet_migrations", "Migrations that are over, by outcome.", labels=("outcome",))
    for outcome, count in sorted(now.outcomes.items()):
        ended.add_metric((outcome,), count)
    yield ended
    for name, text, good in (("succeeded", "did", True), ("failed", "did not", False)):
        each = GaugeMetricFamily(
            f"kubevirt_vmi_migration_{name}", f"1 for each migration that {text} succeed.",
            labels=("vmi", "vmim", "namespace"),
        )  # fmt: skip
        for move in now.ended:
            if move.succeeded is good:
                each.add_metric((move.vm, _object(move), _NAMESPACE), 1)
        yield each
    for name, (kind, text, figure) in _KUBEVIRT.items():
        family = kind(f"kubevirt_vmi_migration_{name}", text, labels=("node", "namespace", "name"))  # type: ignore[call-arg]
        for one in now.moves:
            family.add_metric((one.source, _NAMESPACE, one.vm), figure(one))  # type: ignore[attr-defined]
        yield family
    yield from _last_moves(now)
    yield _histogram(
        "phase_transition_time_from_creation", "Virtual time from a migration's order to the phase.", "phase",
        BOUNDS_S, now.transitions,
    )  # fmt: skip
    yield _histogram(
        "downtime", "Virtual time for which machines stood still that came over.", "node",
        DOWNTIME_BOUNDS_S, now.downtimes,
    )  # fmt: skip
    for name, (text, figure) in _OWN.items():
        own = GaugeMetricFamily(f"sevfleet_migration_{name}", text, labels=("vm", "source", "destination"))
        for one in now.moves:
            own.add_metric((one.vm, one.source, one.destination), figure(one))
        yield own


def _object(move: MoveFigures | EndedMove) -> str:
    """What KubeVirt would call the object that asked for it."""
    return f"migration-{move.number}"


def _last_moves(now: MigrationFigures) -> Iterator[Metric]:
    """When each machine's last move began and ended; one under way has not ended."""
    where = "node", "namespace", "name"
    began = GaugeMetricFamily(
        "kubevirt_vmi_migration_start_time_seconds", "Virtual time at which it began.",
        labels=(*where, "migration_name"),
    )  # fmt: skip
    ended = GaugeMetricFamily(
        "kubevirt_vmi_migration_end_time_seconds", "Virtual time at which it ended.",
        labels=(*where, "migration_name", "status"),
    )  # fmt: skip
    bound = GaugeMetricFamily(
        "kubevirt_vmi_non_evictable", "Whether the machine cannot be moved, as its host has said.", labels=where
    )
    stood = GaugeMetricFamily(
        "kubevirt_vmi_migration_last_downtime_seconds",
        "Virtual time for which it stood still when it came over last.", labels=where,
    )  # fmt: skip
    under_way = {one.vm for one in now.moves}
    for move in now.moves:
        began.add_metric((move.source, _NAMESPACE, move.vm, _object(move)), move.started_s)
    for last in now.last:
        place = last.host, _NAMESPACE, last.vm
        bound.add_metric(place, float(last.refused))
        if last.vm in under_way:
            continue
        if last.started_s is not None:
            began.add_metric((*place, _object(last)), last.started_s)
        ended.add_metric((*place, _object(last), "succeeded" if last.succeeded else "failed"), last.ended_s)
    for came in {one.vm: one for one in now.ended if one.downtime_s is not None}.values():
        stood.add_metric((came.host, _NAMESPACE, came.vm), came.downtime_s or 0.0)
    yield began
    yield ended
    yield bound
    yield stood


def _histogram(
    name: str, text: str, label: str, bounds_s: tuple[float, ...], times: Mapping[str, Transitions]
) -> Metric:
    family = HistogramMetricFamily(f"kubevirt_vmi_migration_{name}_seconds", text, labels=(label,))
    for key, one in sorted(times.items()):
        buckets = [(str(float(bound)), count) for bound, count in zip(bounds_s, one.within, strict=True)]
        family.add_metric((key,), [*buckets, ("+Inf", one.count)], one.sum_s)
    return family
