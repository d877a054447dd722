"""A page of metrics for Prometheus on 127.0.0.1, as long as a run lasts.

It shows that the run lives and how far it is. Samples carry no timestamps:
virtual time is a gauge, since a server would drop samples of another age.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.errors import ToolError
from cluster.migration_metrics import migration_families
from cluster.progress import Progress

ADDRESS = "127.0.0.1"

HOST_GAUGES: Mapping[str, str] = {
    "memory_assigned_bytes": "Memory that guests hold.",
    "memory_resident_bytes": "Memory that holds bytes of its own.",
    "psp_queue_commands": "Commands waiting for the security processor or running on it.",
    "psp_busy_ratio": "Share of virtual time for which the security processor worked.",
    "asids_in_use": "ASIDs that guests hold.",
    "virtual_machines_running": "Virtual machines that run.",
    "core_busy_ratio": "Share of the cores' virtual time that phases used.",
    "memory_bandwidth_ratio": "Share of the usable memory bandwidth that phases take.",
}
"""Help for the gauges a host is known to have; others are shown too, with a plainer help."""


class MetricsPage(Collector):
    """The last glance at a run, as metric families; prometheus-client asks for them at each scrape."""

    def __init__(self) -> None:
        self._progress = Progress(virtual_ns=0, duration_ns=0)

    def show(self, progress: Progress) -> None:
        """Show this from now on."""
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        now = self._progress
        yield GaugeMetricFamily(
            "sevfleet_virtual_time_seconds", "Virtual time that the run has reached.", now.virtual_ns / 1e9
        )
        yield GaugeMetricFamily(
            "sevfleet_virtual_duration_seconds", "Virtual time at which the run will end.", now.duration_ns / 1e9
        )
        yield CounterMetricFamily(
            "sevfleet_round_trips", "Rounds of hosts waiting for one another; none in one process.", now.round_trips
        )
        yield CounterMetricFamily(
            "sevfleet_control_plane_acts", "Points of virtual time at which the control plane acted.",
            now.control_plane_acts,
        )  # fmt: skip
        yield CounterMetricFamily("sevfleet_events", "Events that hosts executed.", now.events)
        machines = GaugeMetricFamily(
            "sevfleet_virtual_machines", "Virtual machines by state and generation.", labels=("state", "generation")
        )
        for (state, generation), count in sorted(now.machines.items()):
            machines.add_metric((state, generation), count)
        yield machines
        yield from _host_families(now.gauges)
        yield from migration_families(now.migrations, now.vmi_phases)


def _host_families(gauges: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    names = sorted({name for figures in gauges.values() for name in figures})
    for name in names:
        text = HOST_GAUGES.get(name, "A live figure of a host.")
        family = GaugeMetricFamily(f"sevfleet_host_{name}", text, labels=("host",))
        for host in sorted(gauges):
            if name in gauges[host]:
                family.add_metric((host,), gauges[host][name])
        yield family


class MetricsServer:
    """Serves the page while a ``with`` block lasts. Raises ToolError where the port is taken."""

    def __init__(self, port: int) -> None:
        self._page = MetricsPage()
        registry = CollectorRegistry()
        registry.register(self._page)
        try:
            self._server, self._thread = start_http_server(port, ADDRESS, registry)
        except OSError as error:
            raise ToolError(
                f"--metrics-port: expected a free port on {ADDRESS}, got {port} ({error.strerror or error})"
            ) from None

    @property
    def port(self) -> int:
        """Where it listens; with port 0 the system chose."""
        return int(self._server.server_port)

    def show(self, progress: Progress) -> None:
        """Serve this glance from now on."""
        self._page.show(progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
