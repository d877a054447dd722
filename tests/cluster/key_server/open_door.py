"""A door of the key server that is open while a test lasts."""

import asyncio
import contextlib
import threading

from cluster.key_server.http_door import HttpDoor


@contextlib.contextmanager
def opened(service, patience_s=10.0):
    """A door in a thread of its own; its port."""
    loop, ports = asyncio.new_event_loop(), []
    ready = threading.Event()

    async def serve():
        door = HttpDoor(service, patience_s)
        ports.append(await door.open(0))
        end.append(asyncio.Event())
        ready.set()
        await end[0].wait()
        await door.close()

    end = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(5)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(end[0].set)
        thread.join(5)
        assert not thread.is_alive()
        loop.close()
