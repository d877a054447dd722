"""An address that cannot be joined is said so in one line, and soon: Ray itself would wait for most of a minute."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_grpc_call import ANSWERED, REFUSED, UNKNOWN

from cluster.cli import main
from cluster.cluster_address import AddressError, look_at, parsed_address
from cluster.code_bundle import code_root
from cluster.ray_cluster import RayCluster
from cluster.session import Session


@contextlib.contextmanager
def server(says: bytes | Callable[[bytes], bytes]) -> Iterator[str]:
    """A server that says something, to what it is asked where it wants to know, and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):
                while True:
                    held.append(listening.accept()[0])
                    held[-1].sendall(says if isinstance(says, bytes) else says(held[-1].recv(4096)))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("[::1]:1", ("::1", 1)), ("head:65535", ("head", 65535))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parsed_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "auto", "10.0.0.1", ":6379", "head:", "head:0", "head:65536", "head:-1", "ray://head:10001", "head:६",
        "head:99999999",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parsed_address(text)
    assert str(caught.value) == f'address: expected HOST:PORT of a Ray cluster, such as 10.0.0.1:6379, got "{text}"'


def test_what_is_no_address_is_refused_before_there_is_a_fleet() -> None:
    with pytest.raises(AddressError, match=r'^address: expected HOST:PORT of a Ray cluster, .* got "auto"$'):
        Session("packed", None, "auto")


@pytest.mark.parametrize("host", ["a..b", "x" * 300])
def test_a_name_that_no_host_can_have_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match=r"^address: expected the name of a host before the port, got"):
        look_at(f"{host}:6379")


def test_a_name_that_nobody_resolves_is_waited_for_no_longer_than_a_silent_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        resolved.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr("cluster.cluster_address.FIND_OUT_S", 0.05)
    with pytest.raises(AddressError, match=r"^far:6379: expected a Ray cluster, got no connection: no answer$"):
        look_at("far:6379")
    resolved.set()


def test_nobody_there_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(AddressError, match=rf"^127.0.0.1:{port}: expected a Ray cluster, got no connection: "):
        look_at(f"127.0.0.1:{port}")


NO_RAY = "something that does not speak like one"


@pytest.mark.parametrize(
    ("says", "got"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_RAY),
        (b"-ERR unknown command 'PRI'\r\n", NO_RAY),
        (UNKNOWN, NO_RAY),
        (b"", "a connection and no answer"),
        (b"\0", "a connection and no answer"),
    ],
)
def test_a_server_that_is_no_ray_is_noticed_before_ray_is_loaded(
    says: bytes, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cluster_address.FIND_OUT_S", 0.3)
    monkeypatch.setattr("subprocess.run", None)
    with server(says) as address, RayCluster(address) as cluster:
        with pytest.raises(AddressError, match=rf"^{address}: expected a Ray cluster.*, got {got}$"):
            cluster.start(1)
        assert not cluster.running


def test_a_host_that_lets_packets_drop_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux drops who knocks where the line of those who wait is full."""
    monkeypatch.setattr("cluster.cluster_address.CONNECT_S", 0.3)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(AddressError, match=rf"^{address}: expected a Ray cluster, got no connection: no answer$"):
            look_at(address)


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "letters"}
NO_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": " ", "RAY_AUTH_TOKEN_PATH": "/nowhere"}


@pytest.mark.parametrize(
    ("says", "has", "wrong"),
    [
        (ANSWERED, {}, None), (ANSWERED, {"RAY_AUTH_TOKEN": "letters"}, None),
        (ANSWERED, TOKEN, "a Ray cluster that asks for a token, .* got one that asks for none"),
        (REFUSED, {}, r"a token that it accepts \(set RAY_AUTH_MODE=token .*, got none"),
        (REFUSED, {"RAY_AUTH_TOKEN": "letters"}, r"a token that it accepts \(set RAY_AUTH_MODE=token .*, got none"),
        (REFUSED, TOKEN, "a token that it accepts, got another"),
        (REFUSED, NO_TOKEN, "a token for it in RAY_AUTH_TOKEN, .*, got none"),
    ],
)
def test_a_cluster_s_wish_for_a_token_and_ours_are_held_against_each_other(
    says: bytes, has: dict[str, str], wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in has.items():
        monkeypatch.setenv(name, value)
    with server(says) as address:
        if wrong is None:
            look_at(address)
            return
        with pytest.raises(AddressError, match=rf"^{address}: expected {wrong}$"):
            look_at(address)


@pytest.mark.parametrize("keep_in", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME"])
def test_a_token_is_shown_wherever_it_is_kept_and_only_where_one_is_asked_for(
    keep_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / ".ray" / "auth_token"
    kept.parent.mkdir()
    kept.write_text("letters\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv(keep_in, {"RAY_AUTH_TOKEN": "letters", "HOME": str(tmp_path)}.get(keep_in, str(kept)))
    heard: list[bytes] = []
    def answer(asked: bytes) -> bytes:
        heard.append(asked)
        return ANSWERED if b"\x0eBearer letters" in asked else REFUSED

    with server(answer) as address:
        look_at(address)
    assert [b"letters" in asked for asked in heard] == [False, True]


@pytest.mark.parametrize("command", ["run", "compare", "sweep"])
def test_a_command_finds_out_before_it_loads_what_it_needs(command: str) -> None:
    """Which takes seconds; and within 5 s of its start."""
    program = (
        "import sys; from cluster.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code if not {'numpy', 'pydantic', 'ray', 'simpy'} & set(sys.modules) else 'loaded')"
    )
    with server(b"") as address:
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, command, "quiet", "--address", address],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(code_root())},
        )  # fmt: skip
        took_s = time.monotonic() - began_s
    why = "expected a Ray cluster, got a connection and no answer"
    assert (done.returncode, done.stderr, done.stdout) == (2, f"sevfleet: {address}: {why}\n", "")
    assert took_s < 5


def test_a_layout_without_ray_asks_nobody() -> None:
    with server(b"") as address:
        assert main(["run", "quiet", "--layout", "inline", "--address", address]) == 2
