"""An address that cannot be joined is said so in one line, and soon: Ray itself would wait for most of a minute."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from cluster.cluster_address import FIND_OUT_S, AddressError, facts_of, parsed_address
from cluster.ray_cluster import RayCluster
from cluster.session import Session


@contextlib.contextmanager
def server(says: bytes) -> Iterator[str]:
    """A server that is no Ray: it says something and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):
                while True:
                    held.append(listening.accept()[0])
                    held[-1].sendall(says)

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
        facts_of(f"{host}:6379")


def test_a_name_that_nobody_resolves_is_waited_for_no_longer_than_a_silent_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        resolved.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr("cluster.cluster_address.CONNECT_S", 0.05)
    with pytest.raises(AddressError, match=r"^far:6379: expected a Ray cluster, got no connection: no answer$"):
        facts_of("far:6379")
    resolved.set()


def test_nobody_there_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(AddressError, match=rf"^127.0.0.1:{port}: expected a Ray cluster, got no connection: "):
        facts_of(f"127.0.0.1:{port}")


def test_a_server_that_is_no_ray_is_noticed_before_ray_connects() -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, RayCluster(address) as cluster:
        with pytest.raises(AddressError, match=rf"^{address}: expected a Ray cluster, got (no answer|something)") as no:
            cluster.start(1)
        assert "\n" not in str(no.value)
        assert not cluster.running


def test_finding_out_is_bounded() -> None:
    assert FIND_OUT_S < 5
