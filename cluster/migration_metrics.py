"""Migrations on the metrics page: under names of sevfleet's own, and under KubeVirt's, for dashboards that know those.

KubeVirt's: docs/observability/metrics.md of kubevirt/kubevirt, and for the histogram's bounds its sources. Its times
are virtual seconds here, and what it once called data_bytes_total has the name that came after it: a gauge may not end
so. When a machine's move began and ended is told of its last, and nobody waits to be looked at (unset). A machine
counts as non-evictable when its host refused its last move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.migration_figures import (
    BOUNDS_S,
    PENDING,
    RUNNING,
    SCHEDULING,
    MigrationFigures,
    MoveFigures,
    Transitions,
    succeeded,
)

_NAMESPACE = "sevfleet"
_KUBEVIRT: Mapping[str, tuple[str, Callable[[MoveFigures], float]]] = {
    "data_total_bytes": ("Memory of the machine.", lambda one: one.total_bytes),
    "data_processed_bytes": ("Memory sent so far.", lambda one: one.processed_bytes),
    "data_remaining_bytes": ("Memory left of the present round, or of post-copy.", lambda one: one.remaining_bytes),
    "dirty_memory_rate_bytes": ("Distinct bytes written a second.", lambda one: one.dirty_bytes_per_s),
    "memory_transfer_rate_bytes": ("Memory sent a second.", lambda one: one.transfer_bytes_per_s),
}
_UNSET = "unset"
_OWN: Mapping[str, tuple[str, Callable[[MoveFigures], float]]] = {
    "rounds": ("Rounds of pre-copy that are through.", lambda one: one.rounds),
    "throttle_ratio": ("Share of time for which its vCPUs are made to stand still.", lambda one: one.throttle_ratio),
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
    good = sum([count for outcome, count in now.outcomes.items() if succeeded(outcome)])
    yield GaugeMetricFamily("kubevirt_vmi_migration_succeeded", "Migrations that succeeded.", good)
    bad = sum(now.outcomes.values()) - good
    yield GaugeMetricFamily("kubevirt_vmi_migration_failed", "Migrations that did not.", bad)
    for name, (text, figure) in _KUBEVIRT.items():
        family = GaugeMetricFamily(f"kubevirt_vmi_migration_{name}", text, labels=("namespace", "name"))
        for one in now.moves:
            family.add_metric((_NAMESPACE, one.vm), figure(one))
        yield family
    yield from _last_moves(now)
    yield _transitions(now.transitions)
    for name, (text, figure) in _OWN.items():
        family = GaugeMetricFamily(f"sevfleet_migration_{name}", text, labels=("vm", "source", "destination"))
        for one in now.moves:
            family.add_metric((one.vm, one.source, one.destination), figure(one))
        yield family


def _last_moves(now: MigrationFigures) -> Iterator[Metric]:
    """When each machine's last move began and ended; one under way has not ended."""
    labels = "namespace", "name"
    began = GaugeMetricFamily(
        "kubevirt_vmi_migration_start_time_seconds", "Virtual time at which it began.", labels=labels
    )
    ended = GaugeMetricFamily(
        "kubevirt_vmi_migration_end_time_seconds", "Virtual time at which it ended.", labels=labels
    )
    bound = GaugeMetricFamily(
        "kubevirt_vmi_non_evictable", "Whether the machine cannot be moved, as its host has said.", labels=labels
    )
    under_way = {one.vm for one in now.moves}
    for move in now.moves:
        began.add_metric((_NAMESPACE, move.vm), move.started_s)
    for last in now.ended:
        bound.add_metric((_NAMESPACE, last.vm), float(last.refused))
        if last.vm in under_way:
            continue
        if last.started_s is not None:
            began.add_metric((_NAMESPACE, last.vm), last.started_s)
        ended.add_metric((_NAMESPACE, last.vm), last.ended_s)
    yield began
    yield ended
    yield bound


def _transitions(transitions: Mapping[str, Transitions]) -> Metric:
    family = HistogramMetricFamily(
        "kubevirt_vmi_migration_phase_transition_time_from_creation_seconds",
        "Virtual time from a migration's order to the phase.", labels=("phase",),
    )
    for phase, one in sorted(transitions.items()):
        buckets = [(str(float(bound)), count) for bound, count in zip(BOUNDS_S, one.within, strict=True)]
        family.add_metric((phase,), [*buckets, ("+Inf", one.count)], one.sum_s)
    return family
