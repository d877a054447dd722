"""``sevfleet device attest``: which devices on a socket it believes, and by which time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.commands import device
from cluster.device_server.device_door import DeviceDoor
from cluster.device_server.device_line import DeviceLine
from tio.card import STREAM_PORT, Card
from tio.device_identity import CardKind, device_identity
from tio.device_security_module import ProtocolId
from tio.ide import Direction, SubStream
from tio.ide.key_programmer import program_keys
from tio.loose_device import LooseDevice
from tio.spdm import PCI_DOE, Requester, RequesterSettings
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.steps import carry
from tio.tdisp import InterfaceId, LockFlags, LockRequest, TdiState
from tio.tdisp.requester import lock_interface

STREAM = 1


@pytest.fixture(scope="module")
def card() -> Card:
    return Card(CardKind.GPU, LooseDevice(), bytes, programmed=True)


@pytest.fixture(scope="module")
def address(card: Card) -> Iterator[str]:
    """Where the card listens, on a thread of its own."""
    loop = asyncio.new_event_loop()
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


def keys_and_lock(line: DeviceLine) -> None:
    """Attest, give a stream its keys and lock the interface, in a session that is left open."""
    one = Requester(RequesterSettings(), PCI_DOE, bytes)
    for steps in (one.connect(), one.digests(), one.certificates()):
        line.do(steps)
    session = line.do(one.open_session())

    def ask(protocol: ProtocolId) -> Callable[[bytes], bytes]:
        def asked(message: bytes) -> bytes:
            return line.do(
                one.vendor_defined(bytes((protocol,)) + message, PCI_SIG_STANDARD, PCI_SIG_VENDOR, session)
            )[1:]

        return asked

    some = {(way, sub): bytes((16 * way + sub,)) * 32 for way in Direction for sub in SubStream}
    carry(program_keys(STREAM_PORT, STREAM, 0, some), ask(ProtocolId.IDE_KM))
    carry(lock_interface(InterfaceId(0x0100), LockRequest(LockFlags(0), STREAM)), ask(ProtocolId.TDISP))


def test_when_a_requester_is_gone_so_are_its_sessions_and_all_that_hangs_on_them(address: str, card: Card) -> None:
    host, port = address.split(":")
    with DeviceLine(host, int(port), "pci-doe") as line:
        keys_and_lock(line)
        assert card.tdi.state is TdiState.CONFIG_LOCKED
    with DeviceLine(host, int(port), "pci-doe"):  # is answered after the other one's end
        assert card.tdi.state is TdiState.ERROR
    assert not card.port.streams[STREAM].has_any_key()
    card.tdi.stop()


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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--at", "1970-01-01"], "--at: expected with attest, which alone judges a device"),
        (["--root", "root.der"], "--root: expected with attest, which alone judges a device"),
        (["attest", "127.0.0.1:1", "--public"], "--public: expected without attest, which serves nothing"),
    ],
)
def test_an_option_of_the_other_side_is_a_users_mistake(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", *words]) == 2
    assert capsys.readouterr().err == f"sevfleet: {line}\n"


def test_a_device_that_measures_otherwise_in_its_session_is_not_believed(
    address: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Requester.measurements

    def others(one: Requester, **asked: Any) -> Iterator[Any]:
        first, *more = yield from measured(one, **asked)
        return (replace(first, value=bytes(len(first.value))) if "session" in asked else first, *more)

    monkeypatch.setattr(Requester, "measurements", others)
    assert main(["device", "attest", address, "--root", root]) == 1
    assert last_line(capsys) == "not believed: measurements: expected the same in the session as before it"
