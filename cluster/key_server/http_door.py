"""HTTP on loopback in front of a key service: one request a connection, all of it bounded.

A client has ten seconds to ask and ten to take its answer; what is longer or
slower is refused, or hung up on, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

from cluster.key_server.answer import Answer, said
from cluster.listener import Listener

ADDRESS = "127.0.0.1"
MOST_HEAD_BYTES = 8192
"""Of a request's line and fields."""
MOST_CONNECTIONS = 256
_NS_PER_S = 1_000_000_000

Service = Callable[[str, str, int], Answer]
"""From a request's target, its client and the time."""


class RequestRefusedError(Exception):
    """A request that no service needs to see."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpDoor:
    """Listens from ``open`` to ``close``. ``patience_s`` is what a client has to ask, and again to take the answer."""

    def __init__(self, service: Service, patience_s: float = 10.0) -> None:
        self._service = service
        self._patience_s = patience_s
        self._listener = Listener(self._serve, MOST_HEAD_BYTES)

    async def open(self, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises OSError where it is taken."""
        return await self._listener.open(ADDRESS, port)

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        await self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer, with_body = await self._answered(reader, writer)
        await self._send(writer, answer, with_body=with_body)

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Answer, bool]:
        try:
            method, target = await self._asked(reader)
            client = str(writer.get_extra_info("peername")[0])
            answer = self._service(target, client, time.monotonic_ns())
        except RequestRefusedError as refused:
            return said(refused.status, str(refused)), True
        await asyncio.sleep(answer.after_ns / _NS_PER_S)
        return answer, method == "GET"

    async def _asked(self, reader: asyncio.StreamReader) -> tuple[str, str]:
        """Method and target of a request."""
        if self._listener.connections > MOST_CONNECTIONS:
            raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self._patience_s)
        except TimeoutError:
            raise RequestRefusedError(HTTPStatus.REQUEST_TIMEOUT, "the request did not end in time") from None
        except asyncio.LimitOverrunError:
            text = f"expected a request of at most {MOST_HEAD_BYTES} bytes"
            raise RequestRefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text) from None
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise ConnectionResetError from None
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "the request has no end") from None
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not head.isascii() or not words[2].startswith(b"HTTP/1."):
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "expected METHOD TARGET HTTP/1.1")
        method, target = words[0].decode(), words[1].decode()
        if method not in {"GET", "HEAD"}:
            raise RequestRefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD")
        if not target.startswith("/"):
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "target: expected a path")
        return method, target

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, *, with_body: bool) -> None:
        fields = [
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
        ]
        if answer.retry_ns:
            fields.append(f"Retry-After: {-(-answer.retry_ns // _NS_PER_S)}")
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append("Allow: GET, HEAD")
        writer.write("\r\n".join([*fields, "", ""]).encode("ascii") + (answer.body if with_body else b""))
        writer.write_eof()
        await asyncio.wait_for(writer.drain(), self._patience_s)
        # The other side hangs up once it has everything; to abort before would cost it what is still on its way.
        await asyncio.wait_for(self._hung_up(writer), self._patience_s)

    async def _hung_up(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
