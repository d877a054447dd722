"""Bytes between a process and one it started: whole, only with the key, and an end that is noticed."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.process_channel import HERE, KEY_BYTES, Channel, ChannelEndedError, Door, knock, serve

LONG_S = 30.0


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Channel, Channel]]:
    door = Door()
    far = knock(door.key)
    near = door.wait(LONG_S, LONG_S)
    assert near is not None
    yield near, far
    near.close()
    far.close()
    door.close()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_what_is_sent_arrives_whole_and_in_order(ends: tuple[Channel, Channel], messages: list[bytes]) -> None:
    near, far = ends
    for message in messages:
        near.send(message)
    assert [far.receive() for _ in messages] == messages


def test_more_than_any_buffer_holds_arrives_whole(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    data = os.urandom(20 << 20)
    sender = threading.Thread(target=near.send, args=(data,))
    sender.start()
    assert far.receive() == data
    sender.join()


def test_who_shows_no_key_is_not_let_in() -> None:
    door = Door()
    port, key = door.key
    strangers = [socket.create_connection((HERE, port)) for _ in range(2)]
    strangers[0].sendall(bytes(KEY_BYTES))
    strangers[1].close()
    far = knock(door.key)
    near = door.wait(LONG_S, LONG_S)
    assert near is not None
    near.send(b"for you alone")
    assert far.receive() == b"for you alone"
    assert strangers[0].recv(1) == b""
    assert key not in repr(near).encode()


def test_nobody_comes() -> None:
    assert Door().wait(0.01, LONG_S) is None


def test_a_door_is_on_this_machine_only() -> None:
    assert Door()._socket.getsockname()[0] == "127.0.0.1"


def serving(exchange) -> tuple[Channel, threading.Thread, list[BaseException]]:
    door, raised = Door(), []

    def work() -> None:
        try:
            serve(door.key, exchange)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    near = door.wait(LONG_S, LONG_S)
    assert near is not None
    return near, thread, raised


def test_requests_get_replies_until_the_asking_side_is_gone() -> None:
    near, thread, raised = serving(bytes.upper)
    for word in (b"a", b"", b"bc"):
        near.send(word)
        assert near.receive() == word.upper()
    near.close()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert not raised


def test_an_error_ends_the_channel_and_is_raised_where_it_was_made() -> None:
    near, thread, raised = serving(lambda request: bytes(int(request)))
    near.send(b"x")
    with pytest.raises(ChannelEndedError):
        near.receive()
    thread.join(LONG_S)
    assert [type(one) for one in raised] == [ValueError]


def test_silence_is_an_end_too() -> None:
    door, over = Door(), threading.Event()

    def say_nothing() -> None:
        far = knock(door.key)
        over.wait(LONG_S)
        far.close()

    silent = threading.Thread(target=say_nothing)
    silent.start()
    near = door.wait(LONG_S, 0.05)
    assert near is not None
    with pytest.raises(ChannelEndedError, match="timed out"):
        near.receive()
    over.set()
    silent.join()


SERVES = """
import sys, time
from cluster.process_channel import serve

def exchange(request):
    if request == b"work":
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    if request == b"nap":
        time.sleep(60)
    return b"done"

serve((int(sys.argv[1]), bytes.fromhex(sys.argv[2])), exchange)
"""


def test_one_that_works_is_waited_for_beyond_patience_and_one_that_does_nothing_is_not() -> None:
    door = Door()
    port, key = door.key
    command = [sys.executable, "-c", SERVES, str(port), key.hex()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment) as process:
        channel = door.wait(LONG_S, 0.05)
        assert channel is not None
        channel.send(b"work")
        assert channel.receive() == b"done"
        channel.send(b"nap")
        with pytest.raises(ChannelEndedError):
            channel.receive()
        process.kill()
    door.close()
