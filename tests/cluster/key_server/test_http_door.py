"""The door speaks HTTP to whoever speaks it, and nobody can hold it open, fill it up or block it."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http import HTTPStatus
from pathlib import Path

import pytest
from open_door import opened

from cluster.key_server import http_door
from cluster.key_server.answer import Answer
from cluster.key_server.http_door import ADDRESS

PROJECT = Path(__file__).parents[3]
IMPATIENT_S = 0.2
"""For clients that are slow on purpose; others have time, however busy the machine is."""
BODY = bytes(range(256)) * 8


def toy(target, client, _now):
    """A service that knows three paths."""
    assert client == ADDRESS
    if target == "/wait":
        return Answer(HTTPStatus.TOO_MANY_REQUESTS, "text/plain", b"later", retry_ns=1_500_000_000)
    if target == "/slow":
        return Answer(HTTPStatus.OK, "text/plain", b"slow", after_ns=400_000_000)
    return Answer(HTTPStatus.OK, "application/pkix-cert", BODY)


@pytest.fixture(scope="module")
def port():
    with opened(toy) as where:
        yield where


def asked(port, method, target):
    """What an HTTP client of another's gets."""
    client = http.client.HTTPConnection(ADDRESS, port, timeout=5)
    client.request(method, target)
    got = client.getresponse()
    return got.status, got.headers, got.read()


def said(port, data, *, end=False):
    """What comes back for any bytes, until the door hangs up."""
    with socket.create_connection((ADDRESS, port), 5) as one:
        one.sendall(data)
        if end:
            one.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(1 << 16):
                found += part
    return found


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def test_a_client_gets_the_service_s_answer(port):
    code, fields, body = asked(port, "GET", "/vcek/v1/Milan/crl")
    assert (code, body) == (200, BODY)
    assert fields["Content-Type"] == "application/pkix-cert"
    assert asked(port, "HEAD", "/x")[1]["Content-Length"] == str(len(BODY))
    assert asked(port, "HEAD", "/x")[2] == b""


def test_who_has_to_wait_is_told_for_how_many_seconds(port):
    code, fields, body = asked(port, "GET", "/wait")
    assert (code, fields["Retry-After"], body) == (429, "2", b"later")


REQUESTS = {
    b"POST /x HTTP/1.1\r\n\r\n": 405,
    b"GET x HTTP/1.1\r\n\r\n": 400,
    b"GET  /x HTTP/1.1\r\n\r\n": 400,
    b"GET /x HTTP/2\r\n\r\n": 400,
    b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n": 400,
    b"\r\n\r\n": 400,
    b"\x16\x03\x01" + bytes(300) + b"\r\n\r\n": 400,
    b"GET /x HTTP/1.1\r\nField: " + b"a" * 9000 + b"\r\n\r\n": 431,
    b"GET /" + b"a" * 20_000: 431,
    b"GET /x HTTP/1.0\r\n\r\n": 200,
}


@pytest.mark.parametrize("data", REQUESTS, ids=range(len(REQUESTS)))
def test_what_is_no_request_is_refused_in_one_line(port, data):
    answer = said(port, data)
    assert status(answer) in {REQUESTS[data], None}  # None: hung up on while it still sent
    if answer and REQUESTS[data] != 200:
        assert answer.count(b"\n", answer.index(b"\r\n\r\n") + 4) == 1


def test_a_request_that_never_ends_is_given_up(port):
    with opened(toy, IMPATIENT_S) as hasty:
        assert status(said(hasty, b"GET /x HT")) == 408
    assert status(said(port, b"GET /x HT", end=True)) == 400
    assert said(port, b"", end=True) == b""


def test_a_client_that_is_slow_or_silent_holds_up_nobody(port):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((ADDRESS, port), 5)).sendall(b"GET /slow HTTP/1.1\r\n")
        assert asked(port, "GET", "/x")[0] == 200


def test_a_crowd_is_refused_and_goes_by(monkeypatch):
    monkeypatch.setattr(http_door, "MOST_CONNECTIONS", 3)
    with opened(toy) as port:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection((ADDRESS, port), 5)).sendall(b"GET")
            assert status(said(port, b"GET /x HTTP/1.1\r\n\r\n")) == 503
        # It may take the door a moment to see that they are gone.
        assert any(status(said(port, b"GET /x HTTP/1.1\r\n\r\n")) == 200 for _ in range(100))


def test_a_client_that_does_not_take_its_answer_is_hung_up_on():
    big = Answer(HTTPStatus.OK, "text/plain", bytes(32 << 20))
    with opened(lambda *_: big, IMPATIENT_S) as port, socket.create_connection((ADDRESS, port), 5) as one:
        one.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        threading.Event().wait(4 * IMPATIENT_S)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(1 << 20):
                got += len(part)
        assert got < len(big.body)


def test_it_closes_while_clients_wait():
    with opened(toy) as port:
        one = socket.create_connection((ADDRESS, port), 5)
        one.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        asked(port, "GET", "/x")  # whoever came before this has been let in
    with one, contextlib.suppress(ConnectionResetError):
        assert one.recv(100) == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_stopped_and_ends_in_one_line(number, code):
    words = [sys.executable, "-c", "import sys; from cluster.entry import main; sys.exit(main())", "keyserver"]
    running = subprocess.Popen(
        [*words, "--port", "0", "--rate", "0.01"], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    with running:
        found = re.fullmatch(r"serving certificates at http://127\.0\.0\.1:(\d+)\n", running.stdout.readline())
        where = int(found[1])
        code_, fields, body = asked(where, "GET", "/vcek/v1/Turin/cert_chain")
        assert (code_, fields["Content-Type"], body.count(b"BEGIN CERTIFICATE")) == (200, "application/x-pem-file", 2)
        assert asked(where, "GET", "/vcek/v1/Turin/cert_chain")[0] == 429
        idle = socket.create_connection((ADDRESS, where), 5)
        running.send_signal(number)
        out, err = running.communicate(timeout=20)
        idle.close()
    assert (running.returncode, out) == (code, "")
    assert err.count("\n") == 1
    assert "stopped" in err
