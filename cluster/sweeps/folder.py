"""Where a sweep is kept, run by run, so that it can be gone on with.

    out/sweep.json            which sweep this is: scenario, settings, versions
    out/scenario.toml         the scenario that is varied
    out/runs/KEY.json         one finished run: digest and figures; KEY follows from all that it depends on
    out/runs/KEY.failed.txt   why a run has no result, with the traceback of a fault of sevfleet's
    out/sweep.parquet, runs.parquet, points.parquet    the tables of cluster/sweeps/tables.py, once all runs are over

Files appear whole or not at all. A run's file that was damaged counts as none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.code_bundle import code_hash
from cluster.errors import ToolError, UserError
from cluster.firmware_key import AUTO, firmware_image
from cluster.scenario import MEMORY_DISK, Scenario
from cluster.sweeps.figures import Value
from cluster.sweeps.plan import Run, SweepPlan
from cluster.sweeps.run import RunOutcome
from cluster.units import shown
from cluster.versions import versions

FORMAT = 1
"""Version of all files here; stands in sweep.json under "sevfleet_sweep"."""

_MARK = "sevfleet_sweep"
_IDENTITY = "sweep.json"
_RUNS = "runs"
_PARTIAL = ".partial"
_SHOWN = 40
_CODE_DIGITS = 16
_TRACE_TABLES = ("tasks.parquet", "tasks.csv", "fragments.parquet", "fragments.csv")


class SweepFolderError(UserError):
    """A folder in which this sweep cannot be kept."""


class SweepFolder:
    """The folder of one sweep, held by one process at a time."""

    def __init__(self, path: Path, plan: SweepPlan, pairs: bool) -> None:
        self._path = path
        self._plan = plan
        self._pairs = pairs
        self._inputs: dict[int, str] = {}
        self._digest_of = cache(_sha256)  # Points have most files in common, and disks may be large.

    @classmethod
    @contextmanager
    def opened(cls, folder: str | Path, plan: SweepPlan, *, pairs: bool) -> Iterator[SweepFolder]:
        """The folder, new or of this very sweep. Raises SweepFolderError, or ToolError from the disk."""
        path = Path(folder)
        kept = cls(path, plan, pairs)
        kept._check()
        try:
            (path / _RUNS).mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _unwritten(path, error) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SweepFolderError(f"{folder}: expected a folder of its own, got one in use by a sweep") from None
            kept._begin()
            yield kept
        finally:
            os.close(handle)

    def _check(self) -> None:
        """Raise SweepFolderError for a folder of anything else, before anything is written."""
        path = self._path
        if not path.exists() and not path.is_symlink():
            return
        if not path.is_dir():
            raise SweepFolderError(f"{path}: expected a folder for a sweep, got a file")
        try:
            # Empty folders of runs are all that a sweep leaves that was killed in its first moments.
            there = sorted(entry.name for entry in path.iterdir() if entry.name not in {_RUNS, _IDENTITY + _PARTIAL})
            text = (path / _IDENTITY).read_text("utf-8") if _IDENTITY in there else ""
        except (OSError, UnicodeDecodeError):
            raise SweepFolderError(f"{path}: expected a folder that can be read") from None
        if not text:
            if there:
                expected = "a new or empty folder, or one of this sweep"
                raise SweepFolderError(f"{path}: expected {expected}, got one that holds {shown(there[0])}")
            return
        found = _parsed(text)
        if found.get(_MARK) != FORMAT:
            raise SweepFolderError(f"{path / _IDENTITY}: {_MARK}: expected {FORMAT}, got {shown(found.get(_MARK))}")
        for part, words in _DIFFERENT.items():
            if found.get(part) != self._identity[part]:
                raise SweepFolderError(
                    f"{path}: expected a new or empty folder, or one of this sweep, got one of a sweep {words}: "
                    f"{_difference(found.get(part), self._identity[part])}"
                )

    @cached_property
    def _identity(self) -> dict[str, object]:
        base = self._plan.scenario.with_seed(0).to_toml()
        return {
            _MARK: FORMAT,
            "scenario": self._plan.scenario.name,
            "scenario_sha256": hashlib.sha256(base.encode()).hexdigest(),
            "settings": sorted(axis.path for axis in self._plan.axes),
            # Versions of sevfleet are few, and its code changes between them.
            "versions": {"python": platform.python_version(), "code": code_hash()[:_CODE_DIGITS], **versions()},
        }

    def _begin(self) -> None:
        for stray in (*self._path.glob(f"*{_PARTIAL}"), *(self._path / _RUNS).glob(f"*{_PARTIAL}")):
            stray.unlink(missing_ok=True)
        if not (self._path / _IDENTITY).exists():
            self._write("scenario.toml", self._plan.scenario.to_toml())
            self._write(_IDENTITY, json.dumps(self._identity, indent=2, sort_keys=True) + "\n")

    def key(self, run: Run) -> str:
        """The name of a run's file: a digest of everything that its results follow from."""
        if run.point.number not in self._inputs:
            self._inputs[run.point.number] = _inputs(run.point.text, self._digest_of)
        parts = (FORMAT, run.point.sha256, run.seed, self._pairs, self._inputs[run.point.number])
        body = json.dumps([*parts, self._identity["versions"]], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:32]

    def read(self, run: Run) -> RunOutcome | None:
        """A finished run's outcome; None if there is none, or it was damaged."""
        key = self.key(run)
        try:
            kept = json.loads((self._path / _RUNS / f"{key}.json").read_text("utf-8"))
            body = kept["run"]
            if kept["sha256"] != _checksum(body) or body["key"] != key:
                return None
            return RunOutcome(body["digest"], tuple(Value(*entry) for entry in body["figures"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def keep(self, run: Run, outcome: RunOutcome) -> None:
        """Write a run's outcome down. Raises ToolError from the disk."""
        key = self.key(run)
        failed = f"{_RUNS}/{key}.failed.txt"
        if outcome.reason is not None:
            # No result: it is made again next time, and the reason may be gone by then.
            text = f"{run.described(self._plan.axes)}\n{outcome.reason}\n{outcome.trace}"
            self._write(failed, text)
            return
        body = {
            "key": key,
            "run": run.described(self._plan.axes),
            "digest": outcome.digest,
            "figures": [list(value) for value in outcome.values],
        }
        self._write(f"{_RUNS}/{key}.json", json.dumps({"run": body, "sha256": _checksum(body)}, indent=1) + "\n")
        (self._path / failed).unlink(missing_ok=True)

    def keep_tables(self, tables: Mapping[str, pa.Table]) -> None:
        """Write the tables by name, each in the place of an earlier one. Raises ToolError from the disk."""
        for name, table in tables.items():
            file = self._path / f"{name}.parquet"
            try:
                pq.write_table(table, f"{file}{_PARTIAL}")
                Path(f"{file}{_PARTIAL}").replace(file)
            except OSError as error:
                raise _unwritten(file, error) from None

    def _write(self, name: str, text: str) -> None:
        file = self._path / name
        new = Path(f"{file}{_PARTIAL}")
        try:
            new.write_text(text, "utf-8")
            new.replace(file)
        except OSError as error:
            raise _unwritten(file, error) from None


_DIFFERENT = {
    "scenario": "of another scenario",
    "scenario_sha256": "of another state of the scenario",
    "settings": "over other settings",
    "versions": "made with other versions",
}
"""What makes another sweep, and how it is said. Seeds and values are not among it: a sweep may grow."""


def _difference(found: object, wanted: object) -> str:
    """What is there, and what was asked for, as far as they differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name))
        return f"{name} {found.get(name)}, now {wanted.get(name)}"
    return f"{_listed(found)}, now {_listed(wanted)}"


def _listed(part: object) -> str:
    if isinstance(part, list):
        return ", ".join(map(str, part)) or "none"
    return str(part)[:_SHOWN]


def _parsed(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _checksum(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _inputs(text: str, digest_of: Callable[[Path], str]) -> str:
    """Digests of the files that a scenario's results follow from: firmware images, and whatever else it names."""
    scenario = Scenario.parse(tomllib.loads(text))
    trace = scenario.trace
    keys = {vm.firmware for vm in scenario.vms} | ({AUTO} if trace is not None else set())
    digests = [firmware_image(key).sha256 for key in sorted(keys)]
    if trace is not None and trace.source != "generated":
        digests += [digest_of(file) for file in (Path(trace.source) / name for name in _TRACE_TABLES) if file.is_file()]
    disks = {vm.disk for vm in scenario.vms} | {card.disk for group in scenario.hosts for card in group.cards}
    named = [scenario.cost_rows, *sorted(disks - {MEMORY_DISK})]
    return " ".join([*digests, *[digest_of(Path(name)) for name in named if name]])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unwritten(file: Path, error: OSError) -> ToolError:
    return ToolError(f"{file}: could not be written: {error.strerror or error}")
