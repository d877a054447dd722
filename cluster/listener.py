"""A listening socket and the connections through it, which end together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

LONGEST_LINE_BYTES = 1 << 16
"""What a reader takes in before whoever waits for a line's end is told that it is too long."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Listens from ``open`` to ``close``; ``serve`` is run for each connection, which is hung up on at its end.

    A client that comes, leaves or dawdles at the wrong moment (OSError, TimeoutError) is no error of the server's.
    """

    def __init__(self, serve: Serve, limit_bytes: int = LONGEST_LINE_BYTES) -> None:
        self._serve = serve
        self._limit_bytes = limit_bytes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises OSError where it is taken."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=self._limit_bytes)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()
