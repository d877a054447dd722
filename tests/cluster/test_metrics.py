import socket
import subprocess
import urllib.request

import pytest

from cluster.errors import ToolError
from cluster.metrics import ADDRESS, HOST_GAUGES, MetricsServer
from cluster.migration_figures import BOUNDS_S, EndedMove, MigrationFigures, MoveFigures, Transitions
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
        (MoveFigures("db", "naples", "rome", 12.5, 8 << 30, 3 << 30, 5 << 30, 1e8, 1.25e9, 2, 0.3, 0.21),),
        (EndedMove("db", 1.0, 2.0, refused=False), EndedMove("web", 3.0, 7.25, refused=False),
         EndedMove("card", None, 4.0, refused=True)),
        {"Succeeded": Transitions((0, 0, 1, *[2] * (len(BOUNDS_S) - 3)), 3, 8e3)},
    ),
    gauges={"naples": dict.fromkeys(HOST_GAUGES, 0.5), 'mi"lan\n': {"anything_else": 1.0}},
)


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
        "kubevirt_vmi_migration_succeeded 4.0",
        "kubevirt_vmi_migration_failed 1.0",
        'kubevirt_vmi_migration_data_remaining_bytes{name="db",namespace="sevfleet"} 5.36870912e+09',
        'kubevirt_vmi_migration_start_time_seconds{name="db",namespace="sevfleet"} 12.5',
        'kubevirt_vmi_migration_start_time_seconds{name="web",namespace="sevfleet"} 3.0',
        'kubevirt_vmi_migration_end_time_seconds{name="web",namespace="sevfleet"} 7.25',
        'kubevirt_vmi_migration_end_time_seconds{name="card",namespace="sevfleet"} 4.0',
        'kubevirt_vmi_non_evictable{name="card",namespace="sevfleet"} 1.0',
        'kubevirt_vmi_non_evictable{name="web",namespace="sevfleet"} 0.0',
        "kubevirt_vmi_migrations_in_unset_phase 0.0",
        f'{TRANSITION}_bucket{{le="1.0",phase="Succeeded"}} 1.0',
        f'{TRANSITION}_bucket{{le="7200.0",phase="Succeeded"}} 2.0',
        f'{TRANSITION}_bucket{{le="+Inf",phase="Succeeded"}} 3.0',
        f'{TRANSITION}_sum{{phase="Succeeded"}} 8000.0',
        'sevfleet_migration_throttle_ratio{destination="rome",source="naples",vm="db"} 0.3',
        'sevfleet_migrations{outcome="round cap"} 1.0',
        'sevfleet_host_anything_else{host="mi\\"lan\\n"} 1.0',
    ):
        assert sample in lines
    for none in ('start_time_seconds{name="card"', 'end_time_seconds{name="db"'):
        assert not [line for line in lines if none in line], "one that never began, and one that is under way again"


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
