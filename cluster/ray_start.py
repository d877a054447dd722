"""What Ray does to this process while it starts, and is kept from: blocks around ``ray.init``.

They are handed Ray, and reach into it where it has no settings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.held_signals import HELD, unheard

_RAYLET = "raylet"
_NOT_NEEDED = ("start_monitor", "start_log_monitor", "start_api_server")
_AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
"""Of a raylet, which ends when either of what they name ends."""
_IDLE = "cat"
"""What stands in for them: it waits for the end of its input, which is the raylet's."""
_PORTS = (
    "METRICS_AGENT_PORT_NAME", "METRICS_EXPORT_PORT_NAME", "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)  # fmt: skip
"""Names of files in which agents tell the raylet, which waits for them, where they listen."""
_NOWHERE = -1
"""In them: not at all."""
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

    Ray tells nobody else before all of them run, waits for the first one's port with the interpreter's lock held, and
    below Python until the raylet is known to the head. Where it waits for the raylet's connection, with the lock, that
    has to end before Ray ends this process, in lines of its own.
    """
    services, node, state = ray._private.services, ray._private.node, ray._private.state.GlobalState  # noqa: SLF001
    start, wait, core = services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker  # noqa: SLF001
    found = state.get_node

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

    def once_there(self: Any, node_id: str) -> Any:
        if all(one["NodeID"] != node_id for one in self.node_table()):
            time.sleep(_TURN_MS / 1000)
            raise RuntimeError(f"node {node_id} is still to come")  # so that Ray asks again
        return found(self, node_id)

    def in_silence(*which: Any) -> Any:
        # The lock is held, so nobody else of this process writes meanwhile.
        with _nothing_on_stderr():
            return core(*which)

    services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker = told, in_turns, in_silence  # noqa: SLF001
    state.get_node = once_there
    try:
        yield
    finally:
        state.get_node = found
        services.start_ray_process, node.wait_for_persisted_port, ray._raylet.CoreWorker = start, wait, core  # noqa: SLF001


@contextlib.contextmanager
def bare(ray: Any) -> Iterator[None]:
    """Ray, where it starts in the block, starts nothing but what runs actors: half the processes, and half the time.

    There is neither a dashboard, for which there is no setting that leaves out its server and agent, nor who
    follows log files, nor who asks clouds for machines, nor who installs what our workers have anyway.
    """
    node, services = ray._private.node.Node, ray._private.services  # noqa: SLF001
    theirs = {name: getattr(node, name) for name in _NOT_NEEDED if hasattr(node, name)}
    start = services.start_ray_process

    def without_agents(command: list[str], process_type: str, *rest: Any, **named: Any) -> Any:
        idle = shutil.which(_IDLE)
        if process_type == _RAYLET and idle is not None and _nobody_listens(ray._raylet, command):  # noqa: SLF001
            command = [next((f"{name}{idle}" for name in _AGENTS if one.startswith(name)), one) for one in command]
        return start(command, process_type, *rest, **named)

    for name in theirs:
        setattr(node, name, lambda self, **_: setattr(self, "_webui_url", None))
    services.start_ray_process = without_agents
    try:
        yield
    finally:
        services.start_ray_process = start
        for name, function in theirs.items():
            setattr(node, name, function)


def _nobody_listens(compiled: Any, command: list[str]) -> bool:
    """Tell a raylet so for its agents, as they do themselves where they are to serve nothing; False if Ray cannot."""
    names = [getattr(compiled, name, None) for name in _PORTS]
    if None in names or not hasattr(compiled, "persist_port"):
        return False
    options = dict(one.removeprefix("--").partition("=")[::2] for one in command)
    session_dir, node_id = options.get("session_dir"), options.get("node_id")
    if not session_dir or not node_id:
        return False
    for name in names:
        compiled.persist_port(session_dir, node_id, name, _NOWHERE)
    return True


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
