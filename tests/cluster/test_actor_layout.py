"""Hosts over Ray actors: the same results as in one process, and nothing left of Ray, said, running or kept."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from toy_hosts import Toy, build_badly, build_toy, digest, run_toys, toys

from cluster.actor_layout import ACTOR_BYTES, ActorLayout, one_each, packed
from cluster.bundled_scenarios import bundled_text, load_scenario
from cluster.coordinator import CoordinatorResult
from cluster.inbox import ProtocolViolationError
from cluster.inline_layout import InlineLayout
from cluster.layout import LayoutError, StoppedError
from cluster.ray_cluster import ClusterError
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.shard_worker import WorkerFailedError
from cluster.simulation import run

LONG_S = 60.0
"""Only so that a test that would hang fails instead."""


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every live process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(folder.name)] = int(parent), (folder / "cmdline").read_text().replace("\0", " ")
    return found


def descendants(root: int) -> dict[int, str]:
    """Command lines of all processes below one."""
    everybody = processes()
    family = {root}
    while more := {pid for pid, (parent, _) in everybody.items() if parent in family} - family:
        family |= more
    return {pid: everybody[pid][1] for pid in family - {root}}


def listened_at(pids: Iterable[int]) -> set[str]:
    """Addresses on which these processes listen for TCP, as the kernel writes them."""
    at: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                at[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(at.get(str(handle.readlink()), ""))
    return found - {""}


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(root: int) -> list[int]:
    return [pid for pid, line in descendants(root).items() if "ray::ShardWorker" in line]


def all_gone(family: dict[int, str]) -> bool:
    alive = processes()
    return not any(pid in alive and alive[pid][1] == line for pid, line in family.items())


NONSENSE = {
    "RAY_ADDRESS": "203.0.113.1:6379",
    "RAY_NAMESPACE": "nonsense",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "{",
    "RAY_OVERRIDE_RESOURCES": "nonsense",
    "RAY_RUNTIME_ENV_HOOK": "nonsense.hook",
    "RAY_LOG_TO_STDERR": "1",
    "PYTHONOPTIMIZE": "2",
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorLayout]:
    """One layout for all tests that leave it whole, started with nonsense in its variables and a long TMPDIR."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NONSENSE.items():
            patch.setenv(name, value)
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("long" * 10)))
        before = dict(os.environ)
        layout = ActorLayout(packed(3))
        try:
            layout.start(build_nothing, [])
            assert dict(os.environ) == before
            yield layout
        finally:
            layout.close()


def build_nothing(_: bytes) -> None:
    raise AssertionError


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(LayoutError, match="expected at least 1, got 0"):
        packed(0)


@pytest.mark.ray
def test_ray_is_reachable_from_this_machine_only(layout: ActorLayout) -> None:
    del layout
    listening = listened_at(descendants(os.getpid()))
    assert listening
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def counts(result: CoordinatorResult) -> tuple[int, int, int]:
    return result.round_trips, result.control_plane_acts, result.events


@pytest.mark.ray
@pytest.mark.parametrize("workers", [3, 1, 2])
def test_packed_hosts_tell_the_same_story_with_any_number_of_workers(layout: ActorLayout, workers: int) -> None:
    layout.rule = packed(workers)
    log, result = run_toys(layout, toys(end := 6), end_ns=4000)
    expected, inline = run_toys(InlineLayout(), toys(end), end_ns=4000, windows=True)
    assert layout.workers == workers
    assert digest(log) == digest(expected)
    assert counts(result) == counts(inline)


@pytest.mark.ray
def test_a_host_each_has_a_process_each_and_tells_the_same_story(layout: ActorLayout) -> None:
    layout.rule = one_each(None)
    log, _ = run_toys(layout, toys(5), end_ns=4000)
    assert layout.workers == len(workers_of(os.getpid())) == 5
    assert digest(log) == digest(run_toys(InlineLayout(), toys(5), end_ns=4000)[0])
    held = layout.facts()["worker_memory_bytes"]
    assert isinstance(held, dict)
    assert list(held) == [toy.name for toy in toys(5)]
    assert all(size > 10 << 20 for size in held.values())  # a Python with Ray and numpy in it


def test_a_host_each_knows_how_many_workers_it_has() -> None:
    with pytest.raises(LayoutError, match=r"workers: expected none with layout host.*got 3"):
        one_each(3)


def test_more_workers_than_memory_holds_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.actor_layout.free_bytes", lambda: 7 * ACTOR_BYTES + 1)
    layout = ActorLayout(one_each(None))
    with pytest.raises(LayoutError, match=r"^workers: expected at most 7, .*90 MiB.*got 8 "):
        layout.start(build_nothing, [(f"host-{number}", b"") for number in range(8)])
    assert not layout._cluster.running


@pytest.mark.ray
def test_gauges_come_from_every_worker(layout: ActorLayout) -> None:
    layout.rule = packed(2)
    run_toys(layout, toys(4), end_ns=500)
    assert set(layout.gauges()) == {toy.name for toy in toys(4)}


@pytest.mark.ray
def test_whoever_wants_an_end_while_workers_start_gets_it(layout: ActorLayout) -> None:
    layout.rule = packed(3)
    with pytest.raises(StoppedError, match=r"^enough$"):
        layout.start(build_toy, [(toy.name, toy.pack()) for toy in toys(3)], lambda: "enough")
    assert digest(run_toys(layout, toys(3), end_ns=500)[0]) == digest(run_toys(InlineLayout(), toys(3), end_ns=500)[0])


@pytest.mark.ray
def test_an_error_in_a_worker_comes_out_as_it_was_raised(layout: ActorLayout) -> None:
    layout.rule = packed(2)
    hosts = toys(3)
    hosts[1] = Toy("toy-1", hosts[1].peers, lie=True)
    with pytest.raises(ProtocolViolationError, match=r"^toy-1: .*promised nothing before") as caught:
        run_toys(layout, hosts)
    assert type(caught.value) is ProtocolViolationError


@pytest.mark.ray
def test_an_error_that_cannot_be_pickled_back_is_told_all_the_same(layout: ActorLayout) -> None:
    layout.rule = packed(2)
    with pytest.raises(WorkerFailedError, match="TwoWordsError") as caught:
        layout.start(build_badly, [("toy", b"some")])
    assert str(caught.value) == "TwoWordsError: cores: expected some"


@pytest.mark.ray
def test_a_process_that_has_ray_already_keeps_it_and_gets_an_error(layout: ActorLayout) -> None:
    import ray

    second = ActorLayout(packed(1))
    with pytest.raises(ClusterError, match="a process without it"):
        second.start(build_nothing, [])
    second.close()
    assert ray.is_initialized()
    assert run_toys(layout, toys(2), end_ns=300)[1].stopped is None


@pytest.mark.ray
def test_nothing_is_left_after_closing_also_of_workers_and_a_ray_that_were_killed(layout: ActorLayout) -> None:
    """The last test with the module's layout."""
    layout.rule = packed(2)
    run_toys(layout, toys(4), end_ns=300)
    family = descendants(os.getpid())
    (folder,) = layout._cluster._folders
    os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
    os.kill(next(pid for pid, line in family.items() if "raylet/raylet" in line), signal.SIGKILL)
    layout.close()
    assert all_gone({pid: line for pid, line in family.items() if "ray" in line})
    assert not Path(folder).exists()


Program = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def temporary() -> Iterator[str]:
    """A folder for temporary files that nobody else uses, short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield folder


@pytest.fixture
def sevfleet(tmp_path: Path, temporary: str) -> Iterator[Program]:
    """Starts ``sevfleet run`` over Ray with its results in ``out``, in a process group as a terminal gives it."""
    started: list[subprocess.Popen[str]] = []

    def start(duration: str, *more: str) -> "subprocess.Popen[str]":
        (tmp_path / "long.toml").write_text(bundled_text("quiet").replace("1 min", duration))
        command = [
            sys.executable, "-P", "-m", "cluster.cli", "run", "long.toml", "--workers", "2", "--out", "out", *more,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": temporary}
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def running(process: "subprocess.Popen[str]") -> dict[int, str]:
    """All its processes, as soon as both workers are up and the first progress is told."""
    wait_for(lambda: len(workers_of(process.pid)) == 2 or process.poll() is not None)
    assert process.stderr is not None
    for line in process.stderr:
        if "events" in line:
            break
    return descendants(process.pid)


def no_word_of_ray(text: str) -> bool:
    """Apart from its version and its start, which a summary names."""
    return re.search(r"\bray\b(?!\s+\d|\s+start)|raylet|gcs|worker\.py|ActorDied", text, re.IGNORECASE) is None


@pytest.mark.ray
def test_a_run_in_a_folder_of_foreign_modules_says_nothing_of_ray_and_leaves_nothing_running(
    sevfleet: Program, tmp_path: Path
) -> None:
    for name in ("cluster", "node"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemError('a foreign package was imported')\n")
    for name in ("numpy", "msgpack", "pyarrow"):
        (tmp_path / f"{name}.py").write_text("raise SystemError('a foreign module was imported')\n")
    process = sevfleet("15 s", "--quiet")
    family: dict[int, str] = {}
    while process.poll() is None:
        family |= descendants(process.pid)
        time.sleep(0.05)
    out, err = process.communicate(timeout=LONG_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert any("raylet" in line for line in family.values())
    wait_for(lambda: all_gone(family))
    assert Results.load(tmp_path / "out").partial is None


@pytest.mark.ray
def test_an_interrupt_while_ray_starts_leaves_nothing_behind(sevfleet: Program, temporary: str) -> None:
    process = sevfleet("5000 h", "--quiet")
    wait_for(lambda: any("raylet/raylet" in line for line in descendants(process.pid).values()))
    family = descendants(process.pid)
    for _ in range(2):  # the first asks for an end, the second interrupts
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    while process.poll() is None:
        family |= descendants(process.pid)
        time.sleep(0.05)
    out, err = process.communicate(timeout=LONG_S)
    assert (process.returncode, out) == (130, "")
    # Where the second meets Ray in a line that lets no interrupt through, the run ends as the first asked.
    assert err.replace(" (partial results in out)", "") == "sevfleet: stopped with Ctrl-C\n"
    assert all_gone(family)
    assert not list(Path(temporary).iterdir())


@pytest.mark.ray
@pytest.mark.parametrize("everybody", [False, True])
def test_whoever_is_told_to_end_by_name_or_as_one_of_many_ends_with_what_there_is(
    everybody: bool, sevfleet: Program, temporary: str, tmp_path: Path
) -> None:
    """As timeout(1) ends a group, here while Ray starts, and as systemd ends all of a service, here as workers work."""
    process = sevfleet("5000 h", *([] if everybody else ["--quiet"]))
    family: dict[int, str] = {}

    def raylets() -> set[int]:
        for pid, line in descendants(process.pid).items():
            family[pid] = line or family.get(pid, "")  # one that ends has no line any more
        return {pid for pid, line in family.items() if "raylet/raylet" in line}

    wait_for(raylets)
    if everybody:
        for pid in (process.pid, *running(process)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGTERM)
    while process.poll() is None:
        raylets()
        time.sleep(0.02)
    _, err = process.communicate(timeout=LONG_S)
    *_, last = err.splitlines()
    assert (process.returncode, last) == (143, "sevfleet: stopped by SIGTERM (partial results in out)")
    assert len(raylets()) == 1
    wait_for(lambda: all_gone(family))
    assert not list(Path(temporary).iterdir())
    assert Results.load(tmp_path / "out").partial == "stopped by SIGTERM"


ENDS = """
import os, signal, sys
from pathlib import Path
from cluster import ray_cluster
from cluster.cli import main

found, name, left = ray_cluster.process_of, sys.argv[1], [None] * int(sys.argv[2])

def process_of(pid):
    process = found(pid)
    if left and f"/{name}\\0" in Path(f"/proc/{pid}/cmdline").read_text():
        left.pop()
        if "told" in sys.argv:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
    return process

ray_cluster.process_of = process_of
code = main(["run", "quiet", "--no-sweep", "--quiet", "--json"])
sys.exit(code if not left else "still left to end")
"""
"""A run whose Ray loses a process of a name as soon as it has one, so many times; "told" to end itself just before."""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("daemon", "times", "wrong"),
    [
        ("raylet", 1, ""),
        ("gcs_server", 2, "Ray did not start: its process gcs_server ended unexpectedly, for the second time"),
    ],
)
def test_a_process_of_rays_that_ends_while_it_starts_is_survived_once(
    daemon: str, times: int, wrong: str, temporary: str, tmp_path: Path
) -> None:
    """Ray waits a minute for it, then ends the process in lines of its own."""
    command = [sys.executable, "-P", "-c", ENDS, daemon, str(times)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": temporary}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert (ran.returncode, ran.stderr) == ((1, f"sevfleet: {wrong}\n") if wrong else (0, ""))
    assert wrong or json.loads(ran.stdout)["digest"] == run(load_scenario("quiet"), layout="inline").digest
    assert not list(Path(temporary).iterdir())


@pytest.mark.ray
def test_who_is_told_to_end_too_starts_no_other_ray(temporary: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", ENDS, "gcs_server", "2", "told"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": temporary}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False
    )
    *said, left = ran.stderr.splitlines()
    assert left == "still left to end"  # there was no second one
    assert said[0].startswith("sevfleet: stopped by SIGTERM")
    assert not list(Path(temporary).iterdir())


@pytest.mark.ray
def test_a_closed_terminal_ends_a_run_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(bundled_text("quiet").replace("1 min", "5000 h"))
    command = [sys.executable, "-m", "cluster.cli", "run", "long.toml", "--workers", "2", "--out", "out"]
    child, terminal = pty.fork()
    if not child:  # its own session on the terminal, as a shell's foreground job
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs this may be under nohup
        os.chdir(tmp_path)
        os.execve(sys.executable, command, os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    family: dict[int, str] = {}
    try:
        seen = b""
        while b"running" not in seen:
            seen += os.read(terminal, 4096)
        family |= descendants(child)
        assert len(workers_of(child)) == 2
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert all_gone(family)
    results = Results.load(tmp_path / "out")
    assert results.partial == "stopped by SIGHUP"
    assert results.vms.num_rows == 3
    assert results.tables["hosts"].num_rows == 2  # their workers were there to the end


@pytest.mark.ray
def test_ctrl_c_in_a_terminal_ends_a_run_with_what_it_has(sevfleet: Program, tmp_path: Path) -> None:
    process = sevfleet("5000 h")
    family = running(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert "stopped with Ctrl-C" in err
    assert no_word_of_ray(out + err)
    wait_for(lambda: all_gone(family))
    results = Results.load(tmp_path / "out")
    assert results.partial == "stopped with Ctrl-C"
    assert results.vms.num_rows == 3


def cpu_ticks(pid: int) -> int:
    """What a process has computed, in the kernel's ticks (utime of proc(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def killed_whenever_there(process: "subprocess.Popen[str]", family: dict[int, str]) -> None:
    """Kill the worker that has most to do, and whoever takes its seat, until the run gives up."""
    spared = min(workers_of(process.pid), key=cpu_ticks)
    while process.poll() is None:
        family |= descendants(process.pid)
        for pid in set(workers_of(process.pid)) - {spared}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


@pytest.mark.ray
def test_workers_killed_again_and_again_end_a_run_with_one_line_and_marked_results(
    sevfleet: Program, tmp_path: Path
) -> None:
    process = sevfleet("5000 h")
    family = running(process)
    killed_whenever_there(process, family)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert re.match(r"sevfleet: host-[12] was lost 4 times in a row, about .*: its process ended unexpectedly", last)
    assert "Traceback" not in err
    assert no_word_of_ray(out + err)
    wait_for(lambda: all_gone(family))
    results = Results.load(tmp_path / "out")
    assert "was lost 4 times" in str(results.partial)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["partial"]
    assert len(results.tables["hosts"]) == 1  # the other host's rows are there
    assert "lost" in results.vms["state"].to_pylist()


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_the_terminal_says_so(sevfleet: Program, tmp_path: Path) -> None:
    process = sevfleet("3 h")
    running(process)
    # One with nothing to do would be missed only at the end, when nobody watches any more.
    os.kill(max(workers_of(process.pid), key=cpu_ticks), signal.SIGKILL)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, err
    assert no_word_of_ray(out + err)
    assert re.search(r"; host-[12] was lost and is replaced", err)
    results = Results.load(tmp_path / "out")
    assert results.partial is None
    assert results.run["workers_replaced"] == 1
    assert results.digest == run(Scenario.load(tmp_path / "long.toml"), layout="inline").digest
