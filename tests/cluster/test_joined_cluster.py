"""A Ray cluster of several machines that runs already: our code goes there, results are the same, and it goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from test_ray_tls import write_certificates

from cluster import process_family
from cluster.actor_layout import ActorLayout
from cluster.bundled_scenarios import bundled_text, load_scenario
from cluster.cluster_address import AddressError, facts_of, look_at
from cluster.code_bundle import code_root, own_papers
from cluster.ray_cluster import ClusterError, RayCluster, Whereabouts
from cluster.results import Results
from cluster.session import Session
from cluster.simulation import run

FOREIGN = 'raise SystemError("a foreign package was imported")\n'


NODES = """
import sys
from ray.cluster_utils import Cluster
usual = {"object_store_memory": 100 << 20, "include_log_monitor": False}
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "no_monitor": True, **usual}
)
second = cluster.add_node(num_cpus=1, **usual)
print(cluster.address, second.node_id, flush=True)
if sys.stdin.readline():
    cluster.remove_node(second, allow_graceful=False)
    print("removed", flush=True)
    sys.stdin.readline()
cluster.shutdown()
"""
"""Two nodes, in a process of their own: this one has imported Ray in our way."""


@dataclass
class Machines:
    """A cluster of two nodes, whose workers would import packages that are not ours."""

    process: "subprocess.Popen[str]"
    address: str
    second: str
    """Ray's identifier of the node that may be lost."""

    def lose_second(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("cluster", "node"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(FOREIGN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", NODES], cwd=folder, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address, second = process.stdout.readline().split()
        yield Machines(process, address, second)
        process.communicate()  # its input ends, and with it the cluster


def sevfleet(
    folder: Path,
    *arguments: str,
    prefix: tuple[str, ...] = (),
    more: Mapping[str, str] = MappingProxyType({}),
    program: tuple[str, ...] = ("-m", "cluster.cli"),
) -> "subprocess.CompletedProcess[str]":
    """The command, started in a folder, with nothing said of Ray but ``more``."""
    command = [*prefix, sys.executable, "-P", *program, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(code_root()), **more}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def places_of(layout: ActorLayout) -> list[Whereabouts]:
    return [place for seat in layout._working for place in layout._cluster.answers([seat.actor.whereabouts()], 60)]


@pytest.fixture(scope="module")
def here() -> str:
    """The digest of the runs as this process makes them."""
    return run(load_scenario("quiet"), layout="inline").digest


@pytest.mark.ray
def test_a_run_from_a_folder_of_foreign_packages_is_the_same_on_two_machines(
    machines: Machines, tmp_path: Path, here: str
) -> None:
    for name in ("cluster", "node", "msgpack", "numpy", "ray", "typing"):  # Ray imports the latter four
        (tmp_path / f"{name}.py").write_text(FOREIGN)
    there = sevfleet(tmp_path, "run", "quiet", "--address", machines.address, "--json", "--quiet", "--out", "out")
    assert (there.returncode, there.stderr) == (0, "")
    assert Results.load(tmp_path / "out").run["machines"] == 2
    assert json.loads(there.stdout)["digest"] == here


@pytest.mark.ray
def test_a_sweep_runs_on_a_joined_cluster(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(bundled_text("quiet").replace("1 min", "15 s"))
    sweep = ("sweep", "short.toml", "--seeds", "3", "--json", "--quiet")
    done = sevfleet(tmp_path, *sweep, "--out", "a", "--address", machines.address)
    assert (done.returncode, done.stderr) == (0, "")
    sevfleet(tmp_path, *sweep, "--out", "b", "--workers", "0")
    assert (tmp_path / "a" / "points.parquet").read_bytes() == (tmp_path / "b" / "points.parquet").read_bytes()


@pytest.mark.ray
def test_a_worker_with_other_libraries_is_one_line_and_the_cluster_is_left_clean(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, python, code, libraries, _ = own_papers()
    other = tuple((name, "0.1" if name == "numpy" else version) for name, version in libraries)
    monkeypatch.setattr("cluster.ray_cluster.own_papers", lambda: (machine, python, code, other, ""))
    with pytest.raises(ClusterError) as caught, Session("packed", None, machines.address) as session:
        session.run(load_scenario("quiet"), None, None, None)
    numpy = dict(libraries)["numpy"]
    assert str(caught.value) == f"{machines.address}: machine {machine}: expected numpy 0.1, got {numpy}"
    wait_until_no_worker_is_left(machines.address)


def wait_until_no_worker_is_left(address: str) -> None:
    """Of the cluster at an address: other tests have clusters, too."""
    deadline_s = time.monotonic() + 60
    while any("ray::ShardWorker" in command_of(pid) and address in command_of(parent_of(pid)) for pid in pids()):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def parent_of(pid: int) -> int:
    """The raylet of a worker; it names its cluster's address."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def environment_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


@pytest.mark.ray
def test_a_worker_that_stands_still_on_another_machine_is_ended_there_and_replaced(
    machines: Machines, here: str
) -> None:
    with Session("packed", None, machines.address) as session:
        layout = session._layout
        assert isinstance(layout, ActorLayout)
        layout._patience_s = 1.0
        calls = iter(range(1 << 30))
        stopped: list[Whereabouts] = []

        def stop_one() -> None:
            if next(calls) == 2:
                stopped.extend(place for place in places_of(layout) if place.node == machines.second)
                os.kill(stopped[0].pid, signal.SIGSTOP)

        results = session.run(load_scenario("quiet"), None, None, stop_one)
        assert results.run["workers_replaced"] == 1
        assert results.digest == here
        # Its machine ends it on its own; the run need not wait for that.
        for _ in range(300):
            if not process_family.is_alive(stopped[0].process):
                break
            time.sleep(0.1)
        assert not process_family.is_alive(stopped[0].process)
        # The machine on which that happened is the last that gets another.
        assert {place.node for place in places_of(layout)}.isdisjoint({machines.second})
    wait_until_no_worker_is_left(machines.address)


@pytest.mark.ray
def test_a_machine_that_is_lost_is_done_without_and_what_is_left_goes_on_after_the_run(
    machines: Machines, here: str
) -> None:
    """The last test with the second machine."""
    scenario = load_scenario("quiet")
    with Session("packed", None, machines.address) as session:
        layout = session._layout
        assert isinstance(layout, ActorLayout)
        calls = iter(range(1 << 30))

        def lose_a_machine() -> None:
            if next(calls) != 2:
                return
            places = places_of(layout)
            assert len({place.node for place in places}) == 2
            machines.lose_second()
            (lost,) = [place for place in places if place.node == machines.second]
            with suppress(ProcessLookupError):
                os.kill(lost.pid, signal.SIGKILL)
            process_family.end_of([lost.process], 60)

        results = session.run(scenario, None, None, lose_a_machine)
        assert results.run["workers_replaced"] == 1
        assert results.digest == here
        assert len({place.node for place in places_of(layout)}) == 1
    wait_until_no_worker_is_left(machines.address)
    assert facts_of(machines.address).nodes  # the cluster goes on without us


@pytest.mark.ray
def test_a_token_for_a_cluster_that_asks_for_none_is_said_before_workers_fail_by_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one we would turn its workers away, which have none."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-more-than-sixteen-letters")
    with pytest.raises(AddressError, match=r"got one that asks for none$"), RayCluster(machines.address) as cluster:
        cluster.start(1)


@pytest.mark.ray
def test_a_cluster_that_speaks_tls_and_wants_a_token_says_so_and_lets_in_who_has_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-more-than-sixteen-letters"}
    tls = write_certificates(tmp_path / "tls", "127.0.0.1", own_address())
    for name in (*token, *tls):
        monkeypatch.delenv(name, raising=False)
    with ray_head(tmp_path, "127.0.0.1", {**token, **tls}) as address:
        with pytest.raises(AddressError, match=f"^{address}: expected certificates, for TLS is spoken there "):
            look_at(address)
        for name, value in tls.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(AddressError) as caught, RayCluster(address) as cluster:
            cluster.start(1)
        assert str(caught.value).startswith(f"{address}: expected a token that it accepts (set RAY_AUTH_MODE=token")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token-of-more-than-sixteen-letters")
        with pytest.raises(AddressError, match=f"^{address}: expected a token that it accepts, got another$"):
            look_at(address)
        quiet = ("run", "quiet", "--json", "--quiet", "--address", address)
        there = sevfleet(tmp_path, *quiet, more={**token, **tls})
        assert (there.returncode, there.stderr) == (0, "")
        assert json.loads(there.stdout)["digest"] == here
        foreign = write_certificates(tmp_path / "foreign", "127.0.0.1")
        outside = sevfleet(tmp_path, *quiet, more={**token, **foreign, "RAY_TLS_CA_CERT": tls["RAY_TLS_CA_CERT"]})
    assert outside.returncode == 2
    ours = "expected a Ray cluster that accepts the certificate in RAY_TLS_SERVER_CERT"
    assert outside.stderr.startswith(f"sevfleet: {address}: {ours}, got ")


def own_address() -> str:
    """This machine's, by which Ray calls it whatever it is told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody, suppress(OSError):
        nobody.connect(("8.8.8.8", 53))  # no packet is sent
        return str(nobody.getsockname()[0])
    return "127.0.0.1"


@pytest.mark.ray
def test_a_cluster_that_loses_this_machine_while_workers_start_is_named_in_one_line(tmp_path: Path) -> None:
    """Where Ray ends the process itself, somebody else says so."""
    with ray_head(tmp_path, "127.0.0.1", {}) as address:
        (raylet,) = [pid for pid in pids() if f"-{os.getpid()}-".encode() in environment_of(pid) and is_raylet(pid)]
        program = (
            "import os, signal, sys; from cluster import seat; from cluster.cli import main;"
            "begin = seat.Seat.begin_arrival;"
            "seat._BEGIN[seat.Step.ARRIVE] = lambda self: (begin(self), os.kill(int(sys.argv[1]), signal.SIGKILL))[0];"
            "sys.exit(main(sys.argv[2:]))"
        )
        run_there = [sys.executable, "-P", "-c", program, str(raylet), "run", "quiet", "--quiet", "--address", address]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            run_there, env=environment | {"PYTHONPATH": str(code_root())}, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sevfleet: ")]
    assert address in line


def is_raylet(pid: int) -> bool:
    return command_of(pid).split(" ")[0].endswith("raylet/raylet")


SPACES = {f"sf-{os.getpid()}-1": "10.213.7.1", f"sf-{os.getpid()}-2": "10.213.7.2"}
"""Two network namespaces, as good as machines for what crosses a network, and their addresses."""


@pytest.fixture
def spaces() -> Iterator[None]:
    """The namespaces with a cable between them; skipped where the system makes none."""
    first, second = SPACES
    orders = [
        *(["netns", "add", name] for name in SPACES),
        ["link", "add", "cable-1", "netns", first, "type", "veth", "peer", "name", "cable-2", "netns", second],
        *(["-n", name, "addr", "add", f"{address}/24", "dev", f"cable-{name[-1]}"] for name, address in SPACES.items()),
        *(["-n", name, "link", "set", one, "up"] for name in SPACES for one in ("lo", f"cable-{name[-1]}")),
    ]
    try:
        for order in orders:
            if ip(*order) != 0:
                pytest.skip(f"this system makes no network namespaces (ip {' '.join(order)})")
        yield
    finally:
        for name in SPACES:
            ip("netns", "del", name)


def ip(*arguments: str) -> int:
    """The exit code of the command of this name, 1 where there is none."""
    if shutil.which("ip") is None:
        return 1
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode


DROPS = """
import sys, time
from pathlib import Path
from subprocess import check_call
from cluster.actor_layout import ActorLayout
from cluster.cli import main

orders, calls, begins, advance = sys.argv[1].split(";"), iter(range(1 << 30)), [], ActorLayout.advance

def dropping(layout, *arguments):
    if next(calls) == 3:
        for order in orders:
            check_call(order.split())
        begins.append(time.monotonic())
    return advance(layout, *arguments)

ActorLayout.advance = dropping
ActorLayout.__init__.__defaults__ = (None, 3.0)
code = main(sys.argv[2:])
Path("took").write_text(str(time.monotonic() - begins[0]))
sys.exit(code)
"""
"""A run in whose middle orders are given, and that gives workers up when they are silent for 3 s."""
NOTHING_PASSES = "qdisc add dev cable-{} root pfifo limit 0"
"""A queue of packets that has room for none: what is to be sent is lost, and nobody is told."""


@pytest.mark.ray
def test_machines_with_addresses_of_their_own_share_a_run_until_packets_between_them_are_lost(
    spaces: None, tmp_path: Path, here: str
) -> None:
    if shutil.which("tc") is None:
        pytest.skip("this system has no command tc")
    (first, first_ip), (second, second_ip) = SPACES.items()
    into = {name: ("ip", "netns", "exec", name) for name in SPACES}
    drops = ";".join(" ".join((*into[name], "tc", NOTHING_PASSES.format(name[-1]))) for name in SPACES)
    with ray_head(tmp_path, first_ip, {}, into[first]) as address:
        joins = [f"--address={address}", f"--node-ip-address={second_ip}"]
        with ray_node(tmp_path, joins, {}, into[second]):
            quiet = ("run", "quiet", "--json", "--quiet", "--address", address, "--out")
            there = sevfleet(tmp_path, *quiet, "there", prefix=into[first])
            outside = sevfleet(tmp_path, *quiet, "nowhere")  # from there is no way to it
            cut_off = sevfleet(tmp_path, drops, *quiet, "part", prefix=into[second], program=("-c", DROPS))
    assert (there.returncode, there.stderr) == (0, "")
    assert Results.load(tmp_path / "there").run["machines"] == 2
    assert json.loads(there.stdout)["digest"] == here
    assert outside.returncode == 2
    assert outside.stderr.startswith(f"sevfleet: {address}: expected a Ray cluster, got ")
    why = f"{address}: the cluster's head gives no answer any more"
    lost = f"sevfleet: all 2 workers were lost: {why} (partial results in part)\n"
    assert (cut_off.returncode, cut_off.stderr) == (1, lost)
    assert float((tmp_path / "took").read_text()) < 60


def free_port(ip: str) -> int:
    with socket.create_server((ip, 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def ray_head(folder: Path, ip: str, more: dict[str, str], prefix: tuple[str, ...] = ()) -> Iterator[str]:
    """A head node, started as people do."""
    port = free_port("127.0.0.1")
    head = ["--head", f"--node-ip-address={ip}", f"--port={port}", "--include-dashboard=false"]
    with ray_node(folder, head, more, prefix):
        yield f"{ip}:{port}"


QUICK = ("--no-monitor", "--include-log-monitor=false")
"""Nobody asks clouds for machines or follows log files."""


@contextmanager
def ray_node(folder: Path, arguments: list[str], more: dict[str, str], prefix: tuple[str, ...]) -> Iterator[None]:
    """A node with files of its own; whatever it started is ended."""
    mark = f"sf-test-{os.getpid()}-{len(arguments)}"
    files = [f"--temp-dir=/tmp/{mark}"] if "--head" in arguments else []
    ray = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", *QUICK, *files]
    # A head of a user who has a token somewhere would ask for it.
    usual = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **usual, **more, "SEVFLEET_TEST_NODE": mark}
    done = subprocess.run(
        [*ray, "--object-store-memory=100000000", *arguments], env=environment, cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield
    finally:
        started = [process_family.process_of(pid) for pid in pids() if mark.encode() in environment_of(pid)]
        for pid, _ in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process_family.end_of(started, 60)
        shutil.rmtree(f"/tmp/{mark}", ignore_errors=True)
