import socket
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.errors import ToolError
from cluster.metrics import ADDRESS, HOST_GAUGES, MetricsServer
from cluster.migration_figures import (
    BOUNDS_S,
    DOWNTIME_BOUNDS_S,
    EndedMove,
    FinalMove,
    LastDowntime,
    MigrationFigures,
    MoveFigures,
    Times,
)
from cluster.progress import Progress

GLANCE = Progress(
    virtual_ns=1_500_000_000,
    duration_ns=3600 * 10**9,
    round_trips=12,
    control_plane_acts=120,
    events=34_567,
    machines={("running", "SEV_SNP"): 3, ("running", "PLAIN"): 1, ("launching", "SEV"): 2},
    migrations=MigrationFigures(
        {"pending": 2, "running": 1}, {"completed": 4, "round cap": 1},
        moves=(
            MoveFigures("db", "migration-9", "naples", "naples", "rome", 12.5, 8 << 30, 3 << 30, 5 << 30, 1e8, 1.25e9,
                        2, 0.3, 0.35, 0.21, {"pre-copy": 3 << 30, "stop-and-copy": 4096}),
        ),
        ended=(EndedMove("db", "migration-2", "naples", 1.0, 2.0, succeeded=True),
               EndedMove("web", "migration-4", "milan", 3.0, 7.25, succeeded=False)),
        final=(FinalMove("db", "migration-2", "completed", ""), FinalMove("db", "migration-3", "completed", ""),
               FinalMove("web", "migration-4", "round cap", "after 30 rounds")),
        places={"db": "naples", "card": "rome"},
        bound={("card", "rome"): True, ("web", "milan"): False},
        last_downtimes=(LastDowntime("db", "rome", "naples", 0.125),),
        downtimes={"rome": Times((0, 0, 0, 0, 0, *[2] * (len(DOWNTIME_BOUNDS_S) - 5)), 3, 40.5)},
        transitions={"Succeeded": Times((0, 1, *[2] * (len(BOUNDS_S) - 2)), 3, 8e3)},
    ),
    gauges={"naples": dict.fromkeys(HOST_GAUGES, 0.5), 'mi"lan\n': {"anything_else": 1.0}},
)


DB = 'name="db",namespace="sevfleet",node="naples"'
WEB = 'name="web",namespace="sevfleet",node="milan"'
WHY = 'outcome="round cap",reason="after 30 rounds"'
TRANSITION = "kubevirt_vmi_migration_phase_transition_time_from_creation_seconds"


def scrape(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://{ADDRESS}:{server.port}/metrics") as page:
        text: bytes = page.read()
    return text.decode()


def test_a_scrape_shows_how_far_the_run_is() -> None:
    with MetricsServer(0) as server:
        server.show(GLANCE)
        lines = scrape(server).splitlines()
    for sample in (
        "sevfleet_virtual_time_seconds 1.5",
        "sevfleet_virtual_duration_seconds 3600.0",
        "sevfleet_round_trips_total 12.0",
        "sevfleet_control_plane_acts_total 120.0",
        "sevfleet_events_total 34567.0",
        'sevfleet_virtual_machines{generation="SEV_SNP",state="running"} 3.0',
        "kubevirt_vmi_migrations_in_pending_phase 2.0",
        "kubevirt_vmi_migrations_in_scheduling_phase 0.0",
        'kubevirt_vmi_migration_succeeded{namespace="sevfleet",vmi="db",vmim="migration-2"} 1.0',
        'kubevirt_vmi_migration_succeeded{namespace="sevfleet",vmi="db",vmim="migration-3"} 1.0',
        'kubevirt_vmi_migration_failed{namespace="sevfleet",vmi="web",vmim="migration-4"} 1.0',
        f"kubevirt_vmi_migration_data_bytes_total{{{DB}}} 8.589934592e+09",
        f"kubevirt_vmi_migration_data_total_bytes{{{DB}}} 8.589934592e+09",
        f"kubevirt_vmi_migration_data_remaining_bytes{{{DB}}} 5.36870912e+09",
        f'kubevirt_vmi_migration_start_time_seconds{{migration_name="migration-9",{DB}}} 12.5',
        f'kubevirt_vmi_migration_start_time_seconds{{migration_name="migration-4",{WEB}}} 3.0',
        f'kubevirt_vmi_migration_end_time_seconds{{migration_name="migration-4",{WEB},status="failed"}} 7.25',
        'kubevirt_vmi_non_evictable{name="card",namespace="sevfleet",node="rome"} 1.0',
        f"kubevirt_vmi_non_evictable{{{WEB}}} 0.0",
        'kubevirt_vmi_migration_last_downtime_seconds{name="db",namespace="sevfleet",node="rome"} 0.125',
        'kubevirt_vmi_migration_downtime_seconds_bucket{le="0.25",node="rome"} 2.0',
        'kubevirt_vmi_migration_downtime_seconds_count{node="rome"} 3.0',
        "kubevirt_vmi_migrations_in_unset_phase 0.0",
        f'{TRANSITION}_bucket{{le="1.0",phase="Succeeded"}} 1.0',
        f'{TRANSITION}_bucket{{le="3600.0",phase="Succeeded"}} 2.0',
        f'{TRANSITION}_bucket{{le="+Inf",phase="Succeeded"}} 3.0',
        f'{TRANSITION}_sum{{phase="Succeeded"}} 8000.0',
        'sevfleet_migration_throttle_ratio{destination="rome",source="naples",vm="db"} 0.3',
        'sevfleet_migration_downtime_seconds{destination="naples",source="rome",vm="db"} 0.125',
        'sevfleet_migration_slowed_ratio{destination="rome",source="naples",vm="db"} 0.35',
        'sevfleet_migration_sent_bytes{destination="rome",kind="stop-and-copy",source="naples",vm="db"} 4096.0',
        'sevfleet_migrations{outcome="round cap"} 1.0',
        'sevfleet_migration_last_info{migration="migration-3",outcome="completed",reason="",vm="db"} 1.0',
        f'sevfleet_migration_last_info{{migration="migration-4",{WHY},vm="web"}} 1.0',
        'sevfleet_host_anything_else{host="mi\\"lan\\n"} 1.0',
    ):
        assert sample in lines
    assert not [line for line in lines if "last_info" in line and "migration-2" in line], "of each machine the last"
    info = {line for line in lines if line.startswith("kubevirt_vmi_info{")}
    for name, node, evictable in (("db", "naples", "true"), ("card", "rome", "false")):
        (line,) = [one for one in info if f'name="{name}"' in one]
        told = {"node": node, "phase": "running", "evictable": evictable, "os": ""}
        assert all(f'{key}="{value}"' in line for key, value in told.items())
        assert line.endswith(" 1.0")
    ends = [line for line in lines if line.startswith("kubevirt_vmi_migration_end_time_seconds")]
    assert not [line for line in ends if 'name="db"' in line], "one that is under way again has not ended"


_OF_JOB = {"namespace", "name", "node"}
"""Of what virt-handler says of a migration under way."""
KUBEVIRT: dict[str, tuple[str, set[str]]] = {
    "migration_data_bytes_total": ("counter", _OF_JOB),
    "migration_data_total_bytes": ("unknown", _OF_JOB),  # Deprecated: a recording rule, whose series have no type.
    "migration_data_processed_bytes": ("gauge", _OF_JOB),
    "migration_data_remaining_bytes": ("gauge", _OF_JOB),
    "migration_dirty_memory_rate_bytes": ("gauge", _OF_JOB),
    "migration_memory_transfer_rate_bytes": ("gauge", _OF_JOB),
    "migration_start_time_seconds": ("gauge", {*_OF_JOB, "migration_name"}),
    "migration_end_time_seconds": ("gauge", {*_OF_JOB, "migration_name", "status"}),
    "migration_succeeded": ("gauge", {"vmi", "vmim", "namespace"}),
    "migration_failed": ("gauge", {"vmi", "vmim", "namespace"}),
    "migrations_in_pending_phase": ("gauge", set()),
    "migrations_in_scheduling_phase": ("gauge", set()),
    "migrations_in_running_phase": ("gauge", set()),
    "migrations_in_unset_phase": ("gauge", set()),
    "migration_phase_transition_time_from_creation_seconds": ("histogram", {"phase"}),
    "non_evictable": ("gauge", _OF_JOB),
    "info": ("gauge", {
        *_OF_JOB, "phase", "os", "workload", "flavor", "instance_type", "preference", "guest_os_kernel_release",
        "guest_os_machine", "guest_os_arch", "guest_os_name", "guest_os_version_id", "evictable", "outdated", "vmi_pod",
    }),
    # Proposed in pull request 17974 of kubevirt/kubevirt.
    "migration_downtime_seconds": ("histogram", {"node"}),
    "migration_last_downtime_seconds": ("gauge", _OF_JOB),
}
"""Types and labels in KubeVirt's sources (pkg/monitoring, main of August 2026), by names after ``kubevirt_vmi_``."""
BOUNDS = {
    "migration_phase_transition_time_from_creation_seconds":
        [0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600],
    "migration_downtime_seconds": [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32],
}  # fmt: skip


def test_what_has_kubevirts_names_is_what_kubevirt_has_under_them() -> None:
    with MetricsServer(0) as server:
        server.show(GLANCE)
        page = scrape(server)
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(page):
        if not family.name.startswith("kubevirt_"):
            continue
        name = family.name.removeprefix("kubevirt_vmi_") + ("_total" if family.type == "counter" else "")
        assert family.samples, f"{name} is on the page, and nobody could say of what"
        labels = [set(sample.labels) - {"le"} for sample in family.samples]
        assert all(some == labels[0] for some in labels)
        found[name] = family.type, labels[0]
        if name in BOUNDS:
            rows = [sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket")]
            assert rows == [*(str(float(bound)) for bound in BOUNDS[name]), "+Inf"]
    assert found == KUBEVIRT


def test_promtool_finds_nothing_to_say(promtool: str) -> None:
    with MetricsServer(0) as server:
        pages = [scrape(server)]
        server.show(GLANCE)
        pages.append(scrape(server))
    for page in pages:
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_page_is_only_for_this_machine_and_ends_with_the_run() -> None:
    with MetricsServer(0) as server:
        port = server.port
        assert server._server.server_address[0] == "127.0.0.1"
    with socket.socket() as probe:
        assert probe.connect_ex((ADDRESS, port)) != 0


def test_a_port_in_use_is_one_clear_line() -> None:
    with MetricsServer(0) as server, pytest.raises(ToolError) as refusal:
        MetricsServer(server.port)
    assert str(refusal.value).startswith(f"--metrics-port: expected a free port on 127.0.0.1, got {server.port}")
