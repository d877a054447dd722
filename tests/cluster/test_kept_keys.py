"""Keys stay inside of the chips: none is in DRAM, in a command buffer, in a frame, or in anything that is put out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from key_hunt import KeyHunt
from reachable import leaves, running_programs

from cluster.cli import main
from cluster.laboratory.protection import PROTECTIONS, Column, products
from cluster.laboratory.rows import ROWS
from cluster.laboratory.scene import Scene, Setting
from cluster.metrics import MetricsPage
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Entry, Transcript, octets_of
from node.actor import Actor, Role
from node.board import Board
from node.firmware_image import laboratory_image
from node.guest import Guest
from node.host import Host
from node.hypervisor_port import Entered
from node.operations import PspCommand, Write
from node.physical_port import PhysicalPort

NOBODY = Actor(Role.HYPERVISOR)
FLEET = """
schema = 1
name = "keys"
duration = "1 s"
[[hosts]]
name = "milan"
product = "Milan"
memory = "4 GiB"
[[vms]]
name = "snp"
generation = "SEV_SNP"
memory = "64 MiB"
workload = "key-value-store"
start = "running"
firmware = "laboratory.fd"
[[vms]]
name = "launched"
generation = "SEV_SNP"
memory = "64 MiB"
workload = "random-access"
start = "running"
firmware = "laboratory.fd"
parameters = { table_bytes = 65536, batch = 16, instructions_per_batch = 200000000 }
[[vms]]
name = "sev"
generation = "SEV"
memory = "64 MiB"
workload = "random-access"
start = "running"
firmware = "laboratory.fd"
parameters = { table_bytes = 65536, batch = 16, instructions_per_batch = 200000000 }
"""


@dataclass
class Look:
    """Everything in which a key might show, by place."""

    hunt: KeyHunt
    every: int = 16
    """How many batches go by from one look into the frames to the next."""
    boards: list[Board] = field(default_factory=list)
    buffers: set[bytes] = field(default_factory=set)
    frames: list[set[str]] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)

    def finds(self) -> dict[str, set[str]]:
        """Where keys were found, and which."""
        places = {
            "DRAM": self.hunt.found_among(
                octets for board in self.boards for _, octets in PhysicalPort(board.dram).dump_written()
            ),
            "operations and answers": self.hunt.found_among(self.buffers),
            "frames": set().union(*self.frames),
            "metrics": self.hunt.found_among(self.metrics),
        }
        return {place: found for place, found in places.items() if found}


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Watches every board that is made while a test runs; looks into frames now and then."""
    found = Look(KeyHunt().listen(monkeypatch))
    execute = {name: getattr(Board, name) for name in ("execute_host", "execute_guest")}
    seen = [0]

    def watched(name: str) -> Callable[..., Any]:
        def run(board: Board, *arguments: Any) -> Any:
            if board not in found.boards:
                found.boards.append(board)
            answers = execute[name](board, *arguments)
            batch = arguments[-1]
            found.buffers.update(one.buffer for one in batch if isinstance(one, PspCommand))
            found.buffers.update(one.data for one in batch if isinstance(one, Write))
            found.buffers.update(octets_of(Entry(NOBODY, *both)) for both in zip(batch, answers, strict=True))
            if seen[0] % found.every == 0:
                found.frames.append(found.hunt.found_among(leaves(running_programs())))
            seen[0] += 1
            return answers

        return run

    for name in execute:
        monkeypatch.setattr(Board, name, watched(name))
    show = MetricsPage.show

    def shown(page: MetricsPage, progress: Any) -> None:
        show(page, progress)
        found.metrics.append(str(list(page.collect())))

    monkeypatch.setattr(MetricsPage, "show", shown)
    gc.collect()
    gc.freeze()
    return found


def run_fleet(folder: Path) -> Path:
    """A small fleet by the command line, everything kept."""
    file, image, out = folder / "keys.toml", folder / "laboratory.fd", folder / "out"
    image.write_bytes(laboratory_image().data)
    file.write_text(FLEET.replace(image.name, str(image)))
    arguments = ["run", str(file), "--layout", "inline", "--out", str(out), "--log", "--metrics-port", "0"]
    assert main(arguments) == 0
    return out


def test_no_key_of_a_fleet_is_anywhere_but_in_its_chips(
    look: Look, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = run_fleet(tmp_path)
    assert {"psp memory key", "psp VMPCK", "psp TIK", "memory tweaks"} <= set(look.hunt.keys)
    assert look.finds() == {}
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert {"summary.json", "run.json", "scenario.toml"} <= {path.name for path in files}
    assert {path.name: found for path in files if (found := look.hunt.found_in(path.read_bytes()))} == {}
    assert cells_with_keys(look.hunt, out) == set()
    printed = capfd.readouterr()
    assert len(printed.out) > 100
    assert look.hunt.found_among([printed.out, printed.err, caplog.text]) == set()
    assert (len(look.buffers) > 100, len(look.frames) > 10, len(look.metrics) > 0) == (True, True, True)


def cells_with_keys(hunt: KeyHunt, out: Path) -> set[str]:
    """Names of tables that hold a key; their files are compressed."""
    tables = {path.stem: pq.read_table(path) for path in out.rglob("*.parquet")}
    assert {"vms", "hosts"} <= set(tables)
    found = set()
    for name, table in tables.items():
        values = (value for row in table.to_pylist() for value in row.values())
        if hunt.found_among(value if isinstance(value, bytes | str | int) else repr(value) for value in values):
            found.add(name)
    return found


@pytest.mark.parametrize("column", [column for column in Column if column in PROTECTIONS])
@pytest.mark.parametrize("row", ["01", "12"])
def test_no_key_of_an_attacked_host_is_anywhere_but_in_its_chips(column: Column, row: str, look: Look) -> None:
    (attack,) = ROWS[row].attacks
    scene = Scene(Setting(column, products(column)[-1]), Ledger(), Transcript())
    scene.play(attack)
    assert len(look.hunt.keys) > 0
    assert ("host key" in look.hunt.keys) is (column is not Column.PLAIN)
    assert look.finds() == {}


# The hunt finds what it looks for.


def vmpcks(hunt: KeyHunt) -> list[bytes]:
    return sorted(hunt.keys["psp VMPCK"])


def test_a_key_in_dram_is_found(look: Look) -> None:
    scene = Scene(Setting(Column.SEV, "Rome"), Ledger(), Transcript())
    key = next(iter(look.hunt.keys["psp memory key"]))
    scene.host.board.controller.write(scene.target.spare[0] + 5, key, 0)
    assert look.finds() == {"DRAM": {"psp memory key"}}


def test_a_key_in_a_command_buffer_is_found(look: Look) -> None:
    scene = Scene(Setting(Column.SEV, "Rome"), Ledger(), Transcript())
    key = next(iter(look.hunt.keys["psp TIK"]))
    scene.host.board.execute_host((PspCommand(0, scene.target.command_page, b"\1\2" + key),))
    assert look.finds() == {"DRAM": {"psp TIK"}, "operations and answers": {"psp TIK"}}


def test_a_key_in_a_frame_is_found(look: Look) -> None:
    scene = Scene(Setting(Column.SEV_SNP, "Milan"), Ledger(), Transcript())
    note = int.from_bytes(vmpcks(look.hunt)[0], "big")

    def thief(target):
        hidden = [{"note": note}]
        for _ in range(20):
            yield (Write(target.tenant.other.gpa, b"x"),)
        return hidden

    scene.play(thief)
    assert look.finds() == {"frames": {"psp VMPCK"}}


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: key.hex(), lambda key: key.hex().upper(), lambda key: repr(list(key)) and key.hex(":"),
        lambda key: str(int.from_bytes(key, "little")), lambda key: f"x{int.from_bytes(key, 'big')}y",
        lambda key: __import__("base64").b64encode(key).decode(), lambda key: b"ab" + key[::-1],
    ],
)  # fmt: skip
def test_a_key_is_found_however_it_is_spelled(spell: Callable[[bytes], str | bytes]) -> None:
    hunt = KeyHunt({"memory key": {bytes(range(7, 23))}, "another": {bytes(range(99, 115))}})
    assert hunt.found_among([spell(bytes(range(7, 23)))]) == {"memory key"}
    assert hunt.found_among([spell(bytes(range(8, 24)))]) == set()


def test_a_key_in_a_table_is_found(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Host._note_launch

    def leak(host: Host, guest: Guest, entered: Entered) -> None:
        note(host, guest, entered)
        guest.launch_digest = guest.launch_digest[:64] + vmpcks(look.hunt)[0].hex()

    monkeypatch.setattr(Host, "_note_launch", leak)
    out = run_fleet(tmp_path)
    assert "vms" in cells_with_keys(look.hunt, out)
