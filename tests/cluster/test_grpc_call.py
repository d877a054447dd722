"""What servers say to one call: Ray's heads as they were recorded, others by their specifications, and noise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.grpc_call import Said, request, said

METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body


# What heads of Ray 2.60 say to it.
SETTINGS = frame(4, 0, 0, bytes.fromhex("000400400000 000500400000 000600004000 fe0300000001"))
REST = frame(8, 0, 0, bytes.fromhex("003f0001")) + frame(4, 1, 0, b"")
"""A wider window, and that it has read our settings."""
TYPE = b"\x88@\x0ccontent-type\x10application/grpc"
ANSWERED = (
    SETTINGS + REST + frame(1, 4, 1, TYPE + b"@\x14grpc-accept-encoding\x17identity, deflate, gzip")
    + frame(0, 0, 1, bytes(4) + b" \n\x00\x12\x1c" + bytes(range(28)))
)  # fmt: skip
REFUSED = SETTINGS + REST + frame(
    1, 5, 1, TYPE + b"@\x0bgrpc-status\x0216\x00\x0cgrpc-message>InvalidAuthToken: Authentication token is missing "
    b"or incorrect"
)  # fmt: skip
UNKNOWN = SETTINGS + REST + frame(1, 5, 1, TYPE + b"@\x0bgrpc-status\x0212")
"""To a method that it does not have."""


@pytest.mark.parametrize(
    ("received", "what"),
    [
        (ANSWERED, Said.ANSWER), (REFUSED, Said.UNAUTHENTICATED), (UNKNOWN, Said.OTHER),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Said.OTHER), (b"-ERR unknown command 'PRI'\r\n", Said.OTHER),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Said.OTHER), (b"\x15\x03\x01\x00\x02\x02\x46", Said.OTHER),
        # HTTP/2 that is no gRPC: an error page; and one that ends the stream, or the connection.
        (SETTINGS + frame(1, 4, 1, b"\x8d") + frame(0, 1, 1, b"<html>"), Said.OTHER),
        (SETTINGS + frame(3, 0, 1, bytes(4)), Said.OTHER), (SETTINGS + frame(7, 0, 0, bytes(8)), Said.OTHER),
        (frame(0, 0, 1, bytes(5)), Said.OTHER),
    ],
)  # fmt: skip
def test_what_a_server_says_is_told_apart(received: bytes, what: Said) -> None:
    assert said(received) is what


@pytest.mark.parametrize("whole", [ANSWERED, REFUSED, UNKNOWN])
def test_nothing_is_said_before_the_last_byte_that_decides(whole: bytes) -> None:
    assert {said(whole[:size]) for size in range(len(whole))} == {Said.NOTHING}


def test_frames_of_other_streams_decide_nothing() -> None:
    assert said(SETTINGS + frame(1, 5, 3, b"grpc-status\x0216") + frame(0, 0, 3, b"")) is Said.NOTHING


@given(st.binary(max_size=200), st.sampled_from([b"", SETTINGS, SETTINGS + REST]))
def test_noise_is_borne(noise: bytes, before: bytes) -> None:
    assert said(before + noise) in Said


@given(st.integers(1, 9000))
def test_a_request_is_frames_of_a_new_connection_whatever_the_token_s_length(size: int) -> None:
    """Headers by RFC 7541: entries 3 and 6 of the table, then names and values with their lengths."""
    sent = request(METHOD, "10.0.0.1:6379", "x" * size)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert sent.startswith(preface)
    frames = []
    rest = sent[len(preface) :]
    while rest:
        length = int.from_bytes(rest[:3])
        frames.append((rest[3], rest[4], int.from_bytes(rest[5:9]), rest[9 : 9 + length]))
        rest = rest[9 + length :]
    assert [each[:3] for each in frames] == [(4, 0, 0), (1, 4, 1), (0, 1, 1)]
    assert frames[2][3] == bytes(5)
    assert headers(frames[1][3]) == {
        ":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": "10.0.0.1:6379", "te": "trailers",
        "content-type": "application/grpc", "authorization": "Bearer " + "x" * size,
    }  # fmt: skip


def headers(block: bytes) -> dict[str, str]:
    found = {}
    table = {0x83: (":method", "POST"), 0x86: (":scheme", "http")}
    while block and block[0] in table:
        name, value = table[block[0]]
        found[name], block = value, block[1:]
    while block:
        assert block[0] == 0, "a literal that is not kept"
        name, block = text(block[1:])
        found[name], block = text(block)
    return found


def text(block: bytes) -> tuple[str, bytes]:
    """As RFC 7541, 5.1 and 5.2, has it."""
    size, at = block[0], 1
    assert size < 0x80, "no Huffman"
    if size == 0x7F:
        shift = 0
        while True:
            size += (block[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not block[at - 1] & 0x80:
                break
    return block[at : at + size].decode(), block[at + size :]
