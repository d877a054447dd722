"""A device on a socket: one requester after another, each with a responder of its own.

A requester that says nothing for ``patience_s``, or that announces more than a frame holds, is hung up on; the device
serves the next one. As on a real bus there is one mailbox: who comes meanwhile waits in the queue of the socket.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.device_server.socket_frames import HEAD, SERVER_HELLO, TRANSPORTS, Command, Frame, FrameError, parse_head
from cluster.listener import Listener
from tio.doe import DiscoveryTable, DoeError, ObjectType, parse_data_object
from tio.spdm import Binding, MalformedMessage, Responder

MOST_WAITING = 64
"""Connections that wait while another is served; more are hung up on."""
_DISCOVERY = DiscoveryTable((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM))
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


class DeviceDoor:
    """Listens from ``open`` to ``close``. ``responder`` makes one for each connection."""

    def __init__(
        self,
        responder: Callable[[Binding], Responder],
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
        self._turn = asyncio.Lock()
        self._listener = Listener(self._admit)

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises OSError where it is taken."""
        self.done = asyncio.get_running_loop().create_future()
        return await self._listener.open(host, port)

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        await self._listener.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._listener.connections > MOST_WAITING:
            return
        async with self._turn:
            responder = self._responder(self._binding)
            try:
                # Who leaves in the middle of a frame, or sends what is none, is hung up on.
                with suppress(asyncio.IncompleteReadError, FrameError):
                    await self._serve(responder, reader, writer)
            finally:
                responder.close()

    async def _serve(
        self, responder: Responder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            _acknowledge_at_once(writer)
            asked = await asyncio.wait_for(self._read(reader), self._patience_s)
            if asked.transport != self._number:
                raise FrameError(f"transport: expected {self._number}, found {asked.transport}")
            answer = self._answer(responder, asked)
            if answer is not None:
                writer.write(answer.pack())
                await asyncio.wait_for(writer.drain(), self._patience_s)
            if asked.command in (Command.SHUTDOWN, Command.CONTINUE):
                writer.write_eof()
                if asked.command == Command.SHUTDOWN and self.done is not None and not self.done.done():
                    self.done.set_result(0)
                return

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Frame:
        command, transport, size = parse_head(await reader.readexactly(HEAD.size))
        return Frame(command, transport, await reader.readexactly(size))

    def _answer(self, responder: Responder, asked: Frame) -> Frame | None:
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
