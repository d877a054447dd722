"""A fleet as two CSV files, hosts and virtual machines, made a scenario.

Columns are the keys of a scenario's host and machine groups, by the names and with the
units that they have there; a cell that is empty leaves the key out. Parameters of a workload
are columns ``parameters.NAME``. What is wrong is told by file, line and column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from cluster.errors import UserError
from cluster.scenario import SCHEMA_VERSION, HostGroup, Scenario, ScenarioError, VmGroup
from cluster.units import shown

MOST_BYTES = 64 << 20
_REQUIRED = {"hosts": ("name", "product", "memory"), "vms": ("name", "generation", "memory", "workload")}
_GROUPS: Mapping[str, type[BaseModel]] = {"hosts": HostGroup, "vms": VmGroup}
_TABLES = {"cards", "devices", "kernel", "parameters", "sev_policy"}
"""Keys that hold more than a cell does."""
_FIELD = re.compile(r"(hosts|vms)\[(\d+)\]\.?([A-Za-z0-9_.-]*)")
_INTEGER = re.compile(r"\d{1,18}")
_NUMBER = re.compile(r"\d{1,18}\.\d{1,18}")


def fleet_of(hosts: str, vms: str, name: str, duration: str) -> Scenario:
    """The scenario of both files. Raises UserError naming file, line and column."""
    lines: dict[str, list[int]] = {}
    values: dict[str, object] = {"schema": SCHEMA_VERSION, "name": name, "duration": duration}
    for kind, file in (("hosts", hosts), ("vms", vms)):
        rows = list(_rows(kind, file))
        if not rows:
            raise UserError(f"{file}: expected at least one row, got none")
        values[kind], lines[kind] = [row for _, row in rows], [line for line, _ in rows]
    try:
        return Scenario.parse(values, name, Path(vms).parent)
    except ScenarioError as error:
        raise _placed(error, {"hosts": hosts, "vms": vms}, lines) from None


def _placed(error: ScenarioError, files: Mapping[str, str], lines: Mapping[str, list[int]]) -> UserError:
    """A finding of the scenario's, by the row that it is about."""
    found = _FIELD.match(error.field)
    if found is None:
        return UserError(f"{error.field}: expected {error.expected}, got {error.got}")
    kind, number, column = found[1], int(found[2]), found[3]
    where = f"{files[kind]}: line {lines[kind][number]}"
    return UserError(f"{where}: {column or 'row'}: expected {error.expected}, got {error.got}")


def _rows(kind: str, file: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(_text(file).splitlines(), strict=True)
    try:
        columns = next(reader, [])
        _check_columns(kind, file, columns)
        for cells in reader:
            if len(cells) != len(columns):
                raise UserError(f"{file}: line {reader.line_num}: expected {len(columns)} columns, got {len(cells)}")
            yield reader.line_num, _values(columns, cells)
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num}: expected CSV, got {error}") from None


def _text(file: str) -> str:
    path = Path(file)
    try:
        if not path.is_file():
            raise UserError(f"{file}: expected a CSV file, got {'something else' if path.exists() else 'no such file'}")
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{file}: expected at most {MOST_BYTES >> 20} MiB, got more")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start}: expected text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: expected a CSV file, got: {error.strerror}") from None


def _check_columns(kind: str, file: str, columns: list[str]) -> None:
    known = [one for one in _GROUPS[kind].model_fields if one not in _TABLES]
    for column in columns:
        parameter = kind == "vms" and column.startswith("parameters.") and column != "parameters."
        if column not in known and not parameter:
            raise UserError(f"{file}: line 1: expected columns of {', '.join(known)}, got {shown(column)}")
    for column in _REQUIRED[kind]:
        if column not in columns:
            raise UserError(f"{file}: line 1: expected a column {column}, got none")
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"{file}: line 1: expected a column {column} once, got it twice")


def _values(columns: list[str], cells: list[str]) -> dict[str, object]:
    row: dict[str, object] = {}
    parameters: dict[str, object] = {}
    for column, cell in zip(columns, cells, strict=True):
        if not cell.strip():
            continue
        if column.startswith("parameters."):
            parameters[column.removeprefix("parameters.")] = _scalar(cell.strip())
        else:
            row[column] = cell.strip() if column == "name" else _scalar(cell.strip())
    if parameters:
        row["parameters"] = parameters
    return row


def _scalar(cell: str) -> object:
    """What a cell is in TOML: a number, true or false, or a text."""
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    return {"true": True, "false": False}.get(cell, cell)
