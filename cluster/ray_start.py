"""What Ray does to this process while it starts, and is kept from: blocks around ``ray.init``.

They are handed Ray, and reach into it where it has no settings.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cluster.held_signals import HELD, unheard

_RAYLET = "raylet"
_GIVES_UP = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""How soon the raylet ends when the head's server is gone, in place of a minute: this process, when it connects, waits
for the raylet below Python with the interpreter's lock held, so that no watch of ours runs."""
_TURN_MS = 200
"""How long Ray may hold the interpreter's lock at a time while it waits."""


@contextlib.contextmanager
def our_handlers(ray: Any) -> Iterator[None]:
    """Ray, while it starts, puts handlers in place of ours that leave at once, or print a stack and crash.

    The first are of Python and are kept from coming. The others are put below it: until ours
    are there again, no signal is heard.
    """
    utils = ray._private.utils  # noqa: SLF001 - there is no setting for it
    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    with unheard():
        try:
            yield
        finally:
            utils.set_sigterm_handler = theirs
            if threading.current_thread() is threading.main_thread():
                for number in HELD:
                    signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def watchable(ray: Any, note: Callable[[str, int], None]) -> Iterator[None]:
    """Be told name and number of each process that Ray starts in the block, and keep Ray from what hinders a watch.

    Ray tells nobody else before all of them run, and waits for the first one's port with the interpreter's lock held.
    Where it waits so for the raylet, that has to end before Ray ends this process, in lines of its own.
    """
    services, node = ray._private.services, ray._private.node  # noqa: SLF001
    start, wait, core = services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker  # noqa: SLF001

    def told(command: list[str], process_type: str, *rest: Any, **named: Any) -> Any:
        if process_type == _RAYLET:
            named["env_updates"] = {**(named.get("env_updates") or {}), **_GIVES_UP}
        started = start(command, process_type, *rest, **named)
        note(process_type, started.process.pid)
        return started

    def in_turns(*which: Any, timeout_ms: int, **named: Any) -> Any:
        for _ in range(timeout_ms // _TURN_MS):
            with contextlib.suppress(RuntimeError):
                return wait(*which, timeout_ms=_TURN_MS, **named)
        return wait(*which, timeout_ms=_TURN_MS, **named)

    def in_silence(*which: Any) -> Any:
        # The lock is held, so nobody else of this process writes meanwhile.
        with _nothing_on_stderr():
            return core(*which)

    services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker = told, in_turns, in_silence  # noqa: SLF001
    try:
        yield
    finally:
        services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker = start, wait, core  # noqa: SLF001


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """What is written below Python to standard error in the block is lost."""
    try:
        kept = os.dup(2)
    except OSError:  # somebody closed it
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
