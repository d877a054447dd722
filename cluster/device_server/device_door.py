"""A device on a socket: several requesters at once, each with a responder of its own.

Who brings the device no SPDM message for ``patience_s``, or announces more than a frame holds, is hung up on; all other
frames buy no time. Nobody keeps others out: where there are as many as may be, whoever comes takes the place of the one
that the device has not heard of for longest. Sessions are a connection's own, keys and interfaces the one device's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from cluster.device_server.socket_frames import HEAD, SERVER_HELLO, TRANSPORTS, Command, Frame, FrameError, parse_head
from cluster.listener import Listener
from tio.doe import DiscoveryTable, DoeError, ObjectType, parse_data_object
from tio.spdm import Binding, MalformedMessage, Responder

MOST_CONNECTIONS = 64
_DISCOVERY = DiscoveryTable((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM))
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


class DeviceDoor:
    """Listens from ``open`` to ``close``. ``responder`` makes one for each connection, of which it gets the number."""

    def __init__(
        self,
        responder: Callable[[Binding, int], Responder],
        transport: str,
        patience_s: float = 30.0,
    ) -> None:
        self.done: asyncio.Future[int] | None = None
        """Resolved when it is to end: with 0 by a requester (SHUTDOWN), with a signal's number by whoever gets one."""
        self.malformed = 0
        """Messages that the transport does not carry; they have no answer."""
        self._responder = responder
        self._number, self._binding = TRANSPORTS[transport]
        self._patience_s = patience_s
        self._numbers = count(1)
        self._heard: dict[asyncio.Task[None], float] = {}
        """Who is there, and when the device last heard of each: the loop's time."""
        self._listener = Listener(self._admit)

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises OSError where it is taken."""
        self.done = asyncio.get_running_loop().create_future()
        return await self._listener.open(host, port)

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        await self._listener.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        if len(self._heard) == MOST_CONNECTIONS:
            quietest = min(self._heard, key=lambda one: self._heard[one])
            del self._heard[quietest]
            quietest.cancel()
        self._heard[client] = asyncio.get_running_loop().time()
        responder = self._responder(self._binding, next(self._numbers))
        try:
            # Who leaves in the middle of a frame, or sends what is none, is hung up on.
            with suppress(asyncio.IncompleteReadError, FrameError):
                await self._serve(client, responder, reader, writer)
        finally:
            self._heard.pop(client, None)
            responder.close()

    async def _serve(
        self,
        client: asyncio.Task[None],
        responder: Responder,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        while True:
            _acknowledge_at_once(writer)
            async with asyncio.timeout_at(self._heard[client] + self._patience_s):
                asked = await self._read(reader)
            if asked.transport != self._number:
                raise FrameError(f"transport: expected {self._number}, found {asked.transport}")
            answer = self._answer(client, responder, asked)
            # What came in one piece is not answered in one go: others are served between its frames.
            await asyncio.sleep(0)
            if answer is not None:
                writer.write(answer.pack())
                async with asyncio.timeout_at(self._heard[client] + self._patience_s):
                    await writer.drain()
            if asked.command in (Command.SHUTDOWN, Command.CONTINUE):
                writer.write_eof()
                if asked.command == Command.SHUTDOWN and self.done is not None and not self.done.done():
                    self.done.set_result(0)
                return

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Frame:
        command, transport, size = parse_head(await reader.readexactly(HEAD.size))
        return Frame(command, transport, await reader.readexactly(size))

    def _answer(self, client: asyncio.Task[None], responder: Responder, asked: Frame) -> Frame | None:
        if asked.command == Command.TEST:
            return Frame(Command.TEST, asked.transport, SERVER_HELLO)
        if asked.command in (Command.SHUTDOWN, Command.CONTINUE):
            return Frame(asked.command, asked.transport)
        if asked.command != Command.NORMAL:
            return Frame(Command.UNKNOWN, asked.transport)
        payload = self._discovered(asked.payload)
        if payload is None:
            try:
                packet = self._binding.unwrap(asked.payload)
            except MalformedMessage:
                self.malformed += 1
                return None
            self._heard[client] = asyncio.get_running_loop().time()
            payload = self._binding.wrap(responder.answer(packet, time.monotonic_ns()))
        return Frame(Command.NORMAL, asked.transport, payload)

    def _discovered(self, payload: bytes) -> bytes | None:
        """The answer to DOE discovery; None for everything else."""
        if self._binding.name != "pci-doe":
            return None
        try:
            answer = _DISCOVERY.answer(parse_data_object(payload))
        except DoeError:
            return None
        return None if answer is None else answer.pack()


def _acknowledge_at_once(writer: asyncio.StreamWriter) -> None:
    """Have the kernel not wait with acknowledgements: DMTF's emulators send a frame in several pieces."""
    connection = writer.get_extra_info("socket")
    if connection is not None and _QUICK_ACK is not None:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
