"""The command line, over a run that is a stand-in: what it shows, keeps and answers."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.cli import main
from cluster.commands import COMMANDS
from cluster.errors import RunFailedError
from cluster.progress import Progress
from cluster.results import Results
from cluster.scenario import Scenario

Run = Callable[..., Results]


def quick_run(scenario: Scenario, **options: Any) -> Results:
    options["on_progress"](Progress(virtual_ns=0, duration_ns=scenario.duration, note="starting Ray"))
    options["on_progress"](Progress(virtual_ns=scenario.duration // 2, duration_ns=scenario.duration, events=1000))
    run = {"layout": options["layout"], "wall_s": 0.25}
    seeded = scenario if options["seed"] is None else scenario.with_seed(options["seed"])
    return Results.of_rows(seeded, {}, figures={"operations": 200_000}, run=run)


@pytest.fixture
def with_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Run], None]:
    monkeypatch.chdir(tmp_path)

    def use(run: Run) -> None:
        module = ModuleType("cluster.simulation")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cluster.simulation", module)

    use(quick_run)
    return use


def test_a_run_shows_a_summary_and_keeps_results(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "quiet", "--out", "out", "--layout", "inline", "--seed", "7"]) == 0
    captured = capsys.readouterr()
    assert "operations: 200000" in captured.out
    assert captured.out.endswith("results in out\n")
    assert captured.err.startswith("quiet: starting Ray\n")
    kept = Results.load(tmp_path / "out")
    assert (kept.scenario.seed, kept.partial) == (7, None)
    assert kept.digest in captured.out


def test_the_demo_runs_where_no_scenario_is_named(
    with_run: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scenario"] == "demo"
    assert captured.err == ""


def test_quiet_is_quiet(with_run: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quiet", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_options_reach_the_run(with_run: Callable[[Run], None]) -> None:
    seen: dict[str, Any] = {}

    def run(scenario: Scenario, **options: Any) -> Results:
        seen.update(options)
        return Results.of_rows(scenario, {})

    with_run(run)
    assert main(["run", "quiet", "--layout", "packed", "--workers", "3", "--time-limit", "1.5 s", "--quiet"]) == 0
    assert {name: seen[name] for name in ("layout", "workers", "seed", "time_limit_s")} == {
        "layout": "packed",
        "workers": 3,
        "seed": None,
        "time_limit_s": 1.5,
    }


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGINT, 130, "stopped with Ctrl-C"),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
)
def test_a_stopped_run_keeps_what_it_has_marked_as_partial(
    with_run: Callable[[Run], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    reason: str,
) -> None:
    def run(scenario: Scenario, *, should_stop: Callable[[], str | None], **_: Any) -> Results:
        assert should_stop() is None
        os.kill(os.getpid(), number)
        return Results.of_rows(scenario, {}, partial=should_stop())

    before = signal.getsignal(number)
    with_run(run)
    assert main(["run", "quiet", "--out", "out"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"sevfleet: {reason} (partial results in out)\n"
    assert f"Partial results: {reason}" in captured.out
    assert Results.load(tmp_path / "out").partial == reason
    assert signal.getsignal(number) == before


def test_a_run_that_was_done_when_it_was_to_stop_is_whole(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(scenario: Scenario, **_: Any) -> Results:
        os.kill(os.getpid(), signal.SIGINT)
        return Results.of_rows(scenario, {})

    with_run(run)
    assert main(["run", "quiet", "--out", "out"]) == 0
    assert capsys.readouterr().err == ""
    assert Results.load(tmp_path / "out").partial is None


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGINT, 130, "stopped with Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_whoever_cannot_wait_asks_twice(
    with_run: Callable[[Run], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    reason: str,
) -> None:
    def run(scenario: Scenario, **_: Any) -> Results:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        raise AssertionError("the second one goes through")

    with_run(run)
    assert main(["run", "quiet", "--out", "out"]) == code
    assert capsys.readouterr().err == f"sevfleet: {reason}\n"
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_that_is_reported_twice_is_no_impatience_and_one_that_is_ignored_is_none(
    with_run: Callable[[Run], None], tmp_path: Path
) -> None:
    def run(scenario: Scenario, *, should_stop: Callable[[], str | None], **_: Any) -> Results:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        return Results.of_rows(scenario, {}, partial=should_stop())

    with_run(run)
    assert main(["run", "quiet", "--quiet", "--out", "out"]) == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert main(["run", "quiet", "--quiet", "--out", "out"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "sevfleet: stopped with Ctrl-C\n"),
        (signal.SIGTERM, 143, "sevfleet: stopped by SIGTERM\n"),
        (signal.SIGHUP, 129, "sevfleet: stopped by SIGHUP\n"),
    ],
)
def test_a_command_that_knows_no_partial_results_is_interrupted(
    number: signal.Signals, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = ModuleType("cluster.ladder")
    ladder.climb = lambda *_, **__: os.kill(os.getpid(), number)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cluster.ladder", ladder)
    before = signal.getsignal(number)
    if number == signal.SIGINT:  # ignored in a process that a shell started in the background
        signal.signal(number, signal.default_int_handler)
    try:
        assert main(["compare", "quiet", "--quiet"]) == code
        assert signal.getsignal(number) in {before, signal.default_int_handler}
    finally:
        signal.signal(number, before)
    assert capsys.readouterr() == ("", line)


def test_a_lost_worker_is_a_clear_error_and_what_is_known_is_kept(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(scenario: Scenario, **_: Any) -> Results:
        partial = Results.of_rows(scenario, {}, partial="worker 1 died")
        raise RunFailedError("worker 1 died", partial)

    with_run(run)
    assert main(["run", "quiet", "--out", "out"]) == 1
    assert capsys.readouterr().err == "sevfleet: worker 1 died (partial results in out)\n"
    assert Results.load(tmp_path / "out").partial == "worker 1 died"


def test_a_full_disk_is_a_clear_error_after_the_summary(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert main(["run", "quiet", "--out", "out"]) == 1
    captured = capsys.readouterr()
    assert "operations: 200000" in captured.out
    (line,) = [line for line in captured.err.splitlines() if line.startswith("sevfleet: ")]
    assert line == "sevfleet: out: the results could not be written: No space left on device"
    assert not list(tmp_path.iterdir())


def never(scenario: Scenario, **_: Any) -> Results:
    raise AssertionError("the run must not begin")


def test_a_port_in_use_ends_it_before_the_run(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run(never)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["run", "quiet", "--out", "out", "--metrics-port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(
        f"sevfleet: --metrics-port: expected a free port on 127.0.0.1, got {port}"
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_ends_it_before_the_run(
    with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run(never)
    (tmp_path / "thesis.tex").write_text("")
    assert main(["run", "quiet", "--out", "."]) == 2
    assert 'got one that holds "thesis.tex"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "out",
    ["/proc/foo", "/proc/foo/bar", "taken/out", "taken/deeper/out", "/dev/null/x", pytest.param("n" * 300, id="long")],
)
def test_a_folder_that_cannot_be_made_ends_it_before_the_run(
    out: str, with_run: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run(never)
    (tmp_path / "taken").write_text("a file")
    assert main(["run", "quiet", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sevfleet: {out}: expected a folder that can be made, got: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_folder_that_can_be_made_is_not_made_before_there_are_results(
    with_run: Callable[[Run], None], tmp_path: Path
) -> None:
    def run(scenario: Scenario, **_: Any) -> Results:
        assert not list(tmp_path.iterdir())
        return Results.of_rows(scenario, {})

    with_run(run)
    assert main(["run", "quiet", "--quiet", "--out", "deep/er/out"]) == 0
    assert Results.load(tmp_path / "deep/er/out").partial is None


@pytest.mark.parametrize("command", ["run", "check", "compare", "sweep"])
def test_a_pipe_is_refused_and_not_waited_for(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "fifo.toml"
    os.mkfifo(pipe)
    assert main([command, str(pipe)]) == 2
    assert capsys.readouterr().err == f"sevfleet: {pipe}: expected a regular file, got something else\n"


@pytest.mark.parametrize("command", ["run", "compare"])
def test_workers_are_refused_where_there_are_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "quiet", "--quiet", "--layout", "inline", "--workers", "2"]) == 2
    expected = "expected none with layout inline, which runs in this process, got 2"
    assert capsys.readouterr() == ("", f"sevfleet: workers: {expected}\n")


def test_metrics_are_served_while_it_runs(with_run: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quiet", "--metrics-port", "0"]) == 0
    assert capsys.readouterr().err.startswith("metrics on http://127.0.0.1:")


def test_a_failure_of_our_own_is_one_line_and_a_log(
    with_run: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(scenario: Scenario, **_: Any) -> Results:
        raise ZeroDivisionError("somebody\ndivided")

    with_run(run)
    assert main(["run", "quiet", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sevfleet: internal error: ZeroDivisionError: somebody divided (traceback in ")
    log = Path(line.removesuffix(")").rpartition(" in ")[2])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("words", "expectation"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--speed", "9"], "unrecognized arguments: --speed"),
        (["run", "--layout", "star"], '--layout: expected one of inline, packed, host, isolated, got "star"'),
        (["run", "--workers", "0"], '--workers: expected a whole number from 1 to 4096, got "0"'),
        (["run", "--seed", "x"], '--seed: expected a whole number from 0 to 9223372036854775807, got "x"'),
        (["run", "--metrics-port", "70000"], "--metrics-port: expected a whole number from 0 to 65535"),
        (["run", "--time-limit", "60"], '--time-limit: expected a time such as "30 s"'),
        (
            ["compare", "quiet", "--generations", "plain,sev-x"],
            "--generations: expected some of plain, sme, sev, sev-es, sev-snp, sev-tio, got",
        ),
        (["check"], "FILE: expected a scenario file"),
        (["init", "fleet.json"], 'expected a file name that ends in ".toml"'),
        (["init", "--from", "rack"], 'scenario "rack": expected a .toml file or one of demo'),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_code_2(
    words: list[str],
    expectation: str,
    with_run: Callable[[Run], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ladder = ModuleType("cluster.ladder")
    ladder.climb = never  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cluster.ladder", ladder)
    with_run(never)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("sevfleet: ")
    assert expectation in line
    assert not list(tmp_path.iterdir())


def test_init_starts_a_file_that_check_accepts_and_never_overwrites(
    with_run: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "mine.toml", "--from", "quiet"]) == 0
    assert main(["check", "mine.toml"]) == 0
    assert capsys.readouterr().out.endswith("mine.toml: valid: 2 hosts, 3 VMs, 1 min\n")
    assert main(["init", "mine.toml"]) == 2
    assert capsys.readouterr().err == "sevfleet: mine.toml: expected a new file, got one that exists\n"


def test_scenarios_lists_what_comes_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line[0] != " "]
    assert names == [
        "demo", "agent-migration", "attestation-storm", "attested", "bandwidth-bound", "big-guests", "clients",
        "crashes", "drain", "firmware-update", "io-bound", "launch-storm", "noisy-neighbour", "quiet",
        "sev-migration", "tcb-life-cycle", "trusted-devices",
    ]  # fmt: skip


def test_version_names_what_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:4] == ["sevfleet", "Python", "ray", "cryptography"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_command_has_help_with_an_example(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command.NAME, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  sevfleet {command.NAME}" in text
    assert all(line.startswith("  ") for line in text.partition("example:\n")[2].splitlines())


def test_check_starts_no_heavy_machinery() -> None:
    program = (
        "import sys; from cluster.cli import main; code = main(['check', 'quiet']); "
        "sys.exit(code or ' '.join({'ray', 'simpy', 'prometheus_client'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reader_of_a_pipe_may_go_away() -> None:
    program = "import sys; from cluster.cli import main; sys.exit(main(['check', '--json-schema']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


INTERRUPTED_WHILE_IT_LOADS = """
import os, signal, sys

MODULE = sys.argv.pop()

class Finder:
    def find_spec(self, name, *_):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from cluster.entry import main
sys.argv += ["check", "quiet"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("cluster.cli", ""),
        ("cluster.commands.sweep", ""),
        ("cluster.bundled_scenarios", "sevfleet: stopped with Ctrl-C\n"),
        ("cluster.scenario_checks", "sevfleet: stopped with Ctrl-C\n"),
    ],
)
def test_ctrl_c_while_it_loads_is_no_traceback(module: str, said: str) -> None:
    program = [sys.executable, "-c", INTERRUPTED_WHILE_IT_LOADS, module]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)
