"""Bytes between a process and those that it started on its machine: a request goes one way, a reply the other.

Ray starts the processes and says when one is lost. What they have to say to
each other some thousand times a second goes over a connection of their own, on
the loopback address: a call through Ray costs both sides half a millisecond each.
Whoever connects shows a key first that only the process has which was started, and
says which thread of it will serve.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

from cluster.process_family import is_ready, spent_ticks

DoorKey = tuple[int, bytes]
"""Where to knock, and what to show."""
HERE = "127.0.0.1"
KEY_BYTES = 32
_KNOCK_S = 5.0
"""How long somebody who has connected may take to show the key."""
LONGEST_S = 600.0
"""How long bytes may take of one who works: many processes on a busy machine get little of it each."""
_LENGTH = struct.Struct("<Q")


class ChannelEndedError(Exception):
    """The other side is gone, or says nothing."""


class Diligence:
    """Whether a thread of another process on this machine does anything, however slowly."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._spent = spent_ticks(thread)

    def goes_on(self) -> bool:
        """Whether it has worked since it was looked at last, or waits for nothing but a core."""
        before, self._spent = self._spent, spent_ticks(self._thread)
        return self._spent is not None and (self._spent != before or is_ready(self._thread))


class Channel:
    """One end of a connection; ``patience_s`` is how long it waits for the other side, None for ever.

    With ``diligence`` it waits on for one that works, up to ``LONGEST_S``.
    """

    def __init__(
        self, connection: socket.socket, patience_s: float | None = None, diligence: Diligence | None = None
    ) -> None:
        self._diligence = diligence
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(patience_s)
        self._connection = connection

    def send(self, data: bytes) -> None:
        """Hand bytes over. Raises ChannelEndedError."""
        try:
            self._connection.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise ChannelEndedError(str(error)) from error

    def receive(self) -> bytes:
        """The bytes of one ``send`` of the other side. Raises ChannelEndedError."""
        (length,) = _LENGTH.unpack(self.exactly(_LENGTH.size))
        return self.exactly(length)

    def exactly(self, length: int) -> bytes:
        """So many bytes, as they come. Raises ChannelEndedError."""
        data = bytearray(length)
        view = memoryview(data)
        began_s = time.monotonic()
        while view:
            try:
                got = self._connection.recv_into(view)
            except TimeoutError as error:
                late = time.monotonic() - began_s > LONGEST_S
                if late or self._diligence is None or not self._diligence.goes_on():
                    raise ChannelEndedError(str(error)) from error
                continue
            except OSError as error:
                raise ChannelEndedError(str(error)) from error
            if not got:
                raise ChannelEndedError("the connection ended")
            view = view[got:]
        return bytes(data)

    def close(self) -> None:
        """No more of it."""
        self._connection.close()


class Door:
    """Where a process that is being started will connect."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HERE, 0))
        self._key = os.urandom(KEY_BYTES)

    @property
    def key(self) -> DoorKey:
        """What the other side needs, and nobody else may have."""
        return self._socket.getsockname()[1], self._key

    def wait(self, seconds: float, patience_s: float) -> Channel | None:
        """The channel to the process with the key, None if it did not come within ``seconds``."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                return None
            channel = Channel(connection, _KNOCK_S)
            try:
                shown = channel.exactly(KEY_BYTES)
            except ChannelEndedError:
                shown = b""
            if hmac.compare_digest(shown, self._key):
                (thread,) = _LENGTH.unpack(channel.exactly(_LENGTH.size))
                return Channel(connection, patience_s, Diligence(thread))
            connection.close()
        return None

    def close(self) -> None:
        """Nobody else is to come."""
        self._socket.close()


def knock(door: DoorKey) -> Channel:
    """The other end, in the process that was started."""
    port, key = door
    connection = socket.create_connection((HERE, port))
    connection.sendall(key + _LENGTH.pack(threading.get_native_id()))
    return Channel(connection)


def serve(door: DoorKey, exchange: Callable[[bytes], bytes]) -> None:
    """Reply to requests until the other side is gone. What ``exchange`` raises ends it and is raised here."""
    channel = knock(door)
    try:
        while True:
            try:
                request = channel.receive()
            except ChannelEndedError:
                return
            channel.send(exchange(request))
    finally:
        channel.close()
