"""A requester's side of the socket: it carries a requester's packets to a device and its answers back."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from types import TracebackType
from typing import Self, TypeVar

from cluster.device_server.socket_frames import CLIENT_HELLO, HEAD, TRANSPORTS, Command, Frame, FrameError, parse_head
from cluster.errors import ToolError
from tio.doe import DoeError, ObjectType, discovery_request, parse_data_object, parse_discovery_response
from tio.spdm import Packet
from tio.steps import carry

T = TypeVar("T")
PATIENCE_S = 10.0
"""How long a device may take to connect, and again for each answer."""
_MOST_PROTOCOLS = 16


class DeviceLine:
    """A connection to a device, from ``with`` to its end.

    Raises ToolError for one that cannot be reached or does not answer as it should.
    """

    def __init__(self, host: str, port: int, transport: str) -> None:
        self.exchanges = 0
        self._place = f"{host}:{port}"
        self._number, self._binding = TRANSPORTS[transport]
        try:
            self._socket = socket.create_connection((host, port), PATIENCE_S)
        except OSError as error:
            raise ToolError(f"{self._place}: expected a device that listens, got {error.strerror or error}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        self._exchange(Frame(Command.TEST, self._number, CLIENT_HELLO))
        if self._binding.name == "pci-doe":
            self._discover()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._exchange(Frame(Command.CONTINUE, self._number))
        finally:
            self._socket.close()

    def do(self, steps: Generator[Packet, Packet, T]) -> T:
        """Carry a requester's steps to the end. Raises what the requester raises."""
        return carry(steps, self._carried)

    def _carried(self, packet: Packet) -> Packet:
        time.sleep(packet.delay_us / 1e6)
        answer = self._exchange(Frame(Command.NORMAL, self._number, self._binding.wrap(packet)))
        return self._binding.unwrap(answer.payload)

    def _discover(self) -> None:
        """Ask the mailbox what it speaks; it must carry SPDM, in sessions and outside."""
        found, index = set(), 0
        for _ in range(_MOST_PROTOCOLS):
            asked = discovery_request(index).pack()
            answer = self._exchange(Frame(Command.NORMAL, self._number, asked))
            try:
                protocol, index = parse_discovery_response(parse_data_object(answer.payload))
            except DoeError as error:
                raise ToolError(f"{self._place}: {error}") from None
            found.add(protocol.object_type)
            if not index:
                break
        if not {ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM} <= found:
            raise ToolError(f"{self._place}: expected a mailbox that carries SPDM, found types {sorted(found)}")

    def _exchange(self, frame: Frame) -> Frame:
        self.exchanges += 1
        try:
            self._socket.sendall(frame.pack())
            command, transport, size = parse_head(self._take(HEAD.size))
            payload = self._take(size)
        except TimeoutError:
            raise ToolError(f"{self._place}: expected an answer within {PATIENCE_S:g} s, got none") from None
        except (OSError, FrameError) as error:
            raise ToolError(f"{self._place}: expected an answer, got {error}") from None
        if (command, transport) != (frame.command, self._number):
            raise ToolError(f"{self._place}: expected an answer to {frame.command:#x}, got {command:#x} of {transport}")
        return Frame(command, transport, payload)

    def _take(self, size: int) -> bytes:
        parts, until = [], time.monotonic() + PATIENCE_S
        while size:
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            part = self._socket.recv(size)
            if not part:
                raise FrameError("the end of the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
