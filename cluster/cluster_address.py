"""The address of a Ray cluster that runs: parsed, and looked at within seconds.

Ray itself waits 40 s for an address where nobody answers, and writes to standard
error below Python. So somebody else asks first: a process of its own, with a
deadline, that says in one line of JSON what it found.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from cluster.code_bundle import code_root
from cluster.errors import UserError

FIND_OUT_S = 4.8
"""Within which it is known whether an address can be joined."""
CONNECT_S = 2.0
_ASK = "import sys; sys.path.insert(0, sys.argv[1]); from cluster.ray_cluster import tell; tell(sys.argv[2])"


class AddressError(UserError):
    """An address that is none, or where there is no cluster to join."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a cluster says of itself before it is joined."""

    nodes: tuple[str, ...]
    """Addresses of its live machines."""


def parsed_address(text: str) -> tuple[str, int]:
    """Host and port. Raises AddressError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16) or "/" in text:
        raise AddressError(f'address: expected HOST:PORT of a Ray cluster, such as 10.0.0.1:6379, got "{text}"')
    return host.strip("[]"), int(port)


def facts_of(address: str) -> ClusterFacts:
    """Look at the cluster at an address. Raises AddressError within ``FIND_OUT_S``."""
    deadline_s = time.monotonic() + FIND_OUT_S
    host, port = parsed_address(address)
    try:
        _connect(host, port)
    except UnicodeError:
        raise AddressError(f'address: expected the name of a host before the port, got "{host[:60]}"') from None
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise AddressError(f"{address}: expected a Ray cluster, got no connection: {reason}") from None
    command = [sys.executable, "-c", _ASK, str(code_root()), address]
    try:
        found = subprocess.run(  # noqa: S603 - this very Python with a constant program
            command, capture_output=True, timeout=max(0.1, deadline_s - time.monotonic()), check=False,
        )  # fmt: skip
        said = json.loads(found.stdout)
    except subprocess.TimeoutExpired:
        raise AddressError(f"{address}: expected a Ray cluster, got no answer for {FIND_OUT_S:g} s") from None
    except ValueError:
        raise AddressError(f"{address}: expected a Ray cluster, got something that does not speak like one") from None
    if "wrong" in said:
        raise AddressError(f"{address}: {said['wrong']}")
    return ClusterFacts(tuple(said["nodes"]))


def _connect(host: str, port: int) -> None:
    """Connect once. Raises what a socket does, TimeoutError after ``CONNECT_S``."""
    ended: list[Exception | None] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            ended.append(error)
        else:
            ended.append(None)

    # The resolver of names waits as long as it likes, and nothing interrupts it.
    waiting = threading.Thread(target=attempt, daemon=True)
    waiting.start()
    waiting.join(CONNECT_S)
    error = ended[0] if ended else TimeoutError()
    if error is not None:
        raise error
