"""``sevfleet device attest``: which devices on a socket it believes, and by which time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.commands import device
from cluster.device_server.device_door import DeviceDoor
from tio.card import Card
from tio.device_identity import CardKind, device_identity
from tio.loose_device import LooseDevice


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a card listens, on a thread of its own."""
    loop, card = asyncio.new_event_loop(), Card(CardKind.GPU, LooseDevice(), bytes, programmed=True)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opened() -> tuple[DeviceDoor, int]:
        door = DeviceDoor(card.responder, "pci-doe")
        return door, await door.open("127.0.0.1", 0)

    door, port = asyncio.run_coroutine_threadsafe(opened(), loop).result()
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(door.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def root(tmp_path: Path) -> str:
    path = tmp_path / "root.der"
    path.write_bytes(device_identity(CardKind.GPU, "0001", 1).root)
    return str(path)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("at", "code"), [("2024-12-31", 1), ("2025-01-02", 0), ("2074-12-31", 0), ("2075-01-02", 1)])
def test_a_device_is_believed_while_its_certificates_are_valid(
    address: str, root: str, at: str, code: int, pinned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The laboratory's are from 2025 to 2075; the root that is believed unseen must be valid as well."""
    assert main(["device", "attest", address, "--at", at, *["--root", root][: 2 * pinned]]) == code
    said = last_line(capsys)
    assert said.startswith("not believed: certificate 0: expected to be valid at " + at if code else "believed, after ")


@pytest.mark.parametrize(("seconds", "code"), [(1_800_000_000, 0), (3_400_000_000, 1)])
def test_without_a_time_it_is_today(
    address: str, root: str, seconds: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2027 and 2077."""
    monkeypatch.setattr(device.time, "time", lambda: seconds)
    assert main(["device", "attest", address, "--root", root]) == code


def test_a_time_that_is_none_is_a_users_mistake(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("soon", "0001-01-01T00:00:00+23:00"):
        assert main(["device", "attest", address, "--at", text]) == 2
        assert "--at: expected a time such as 2026-01-31" in capsys.readouterr().err
