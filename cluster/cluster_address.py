"""The address of a Ray cluster that runs: parsed, and looked at within seconds.

Ray itself waits 40 s for an address where nobody answers, writes to standard error
below Python, and takes seconds to load. So it is first asked for the cluster's name in a
few bytes, with a deadline, which says whether Ray is there and lets us in. Whoever
does that before anything is loaded knows it in time. What the cluster is,
Ray's own client then asks: in a process of its own, that says in one line of JSON what it found.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.code_bundle import code_root
from cluster.errors import UserError
from cluster.grpc_call import Said, request, said
from cluster.ray_tls import ASKED_FOR, NOT_OURS, TlsError, is_wanted, own_papers, speaks_tls, wrapped

FIND_OUT_S = 3.0
"""Within which it is known whether there is a Ray at an address that lets us in: within 5 s of a command's start, which
takes a second and more on a busy machine."""
CONNECT_S = 2.0
ASK_S = 30.0
"""How long a Ray that has answered once may take to say what it is: its client takes a second or more to load."""
_ASK = "import sys; sys.path.insert(0, sys.argv[1]); from cluster.ray_cluster import tell; tell(sys.argv[2])"
_NAME = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A method that every Ray's head has."""
_MOST_BYTES = 1 << 16
"""Of an answer, which is shorter than a hundred."""
_LATE_S = 0.4
"""How much later than its deadline a look may be over: as late as a busy machine has its threads run."""
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


class AddressError(UserError):
    """An address that is none, or where there is no cluster to join."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a cluster says of itself before it is joined."""

    nodes: tuple[str, ...]
    """Addresses of its live machines."""

    def why_not_joined(self, error: Exception) -> str:
        """What an error of Ray's means: it connects through a node of the cluster on this machine, and is wordy."""
        text = " ".join(str(error).split())
        return f"expected to join from one of its machines ({', '.join(self.nodes)}), got {text[:200]}"


def parsed_address(text: str) -> tuple[str, int]:
    """Host and port. Raises AddressError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16) or "/" in text:
        raise AddressError(f'address: expected HOST:PORT of a Ray cluster, such as 10.0.0.1:6379, got "{text}"')
    return host.strip("[]"), int(port)


def look_at(address: str) -> None:
    """Ask whether there is a Ray at an address that lets us in. Raises AddressError, soon after ``FIND_OUT_S``."""
    host, port = parsed_address(address)
    found: list[str | Exception | None] = []

    def look() -> None:
        try:
            found.append(_wrong_with(host, port, deadline_s))
        except (OSError, UnicodeError) as error:
            found.append(error)

    deadline_s = time.monotonic() + FIND_OUT_S
    # The resolver of names waits as long as it likes, and nothing interrupts it.
    waiting = threading.Thread(target=look, daemon=True)
    waiting.start()
    waiting.join(FIND_OUT_S + _LATE_S)
    (wrong,) = found or [TimeoutError()]
    if isinstance(wrong, UnicodeError):
        raise AddressError(f'address: expected the name of a host before the port, got "{host[:60]}"')
    if isinstance(wrong, OSError):
        reason = "no answer" if isinstance(wrong, TimeoutError) else wrong.strerror or str(wrong)
        raise AddressError(f"{address}: expected a Ray cluster, got no connection: {reason}")
    if wrong is not None:
        raise AddressError(f"{address}: {wrong}")


def still_answers(address: str) -> bool:
    """Whether a cluster that was joined still does, asked twice: on a busy machine an answer may be late."""
    for _ in range(2):
        with contextlib.suppress(AddressError):
            look_at(address)
            return True
    return False


def _wrong_with(host: str, port: int, deadline_s: float) -> str | None:
    """What keeps us from joining what is there, None if nothing does. Raises what a socket does if nobody is."""
    try:
        return _wrong_between(host, port, own_papers() if is_wanted() else None, deadline_s)
    except TlsError as error:
        return str(error)


def _wrong_between(host: str, port: int, tls: ssl.SSLContext | None, deadline_s: float) -> str | None:
    """As ``_wrong_with``, over TLS or in the clear. Raises TlsError too."""
    with_token = os.environ.get(_MODE, "").lower() == "token"
    answer = _says(host, port, tls, None, deadline_s)
    if answer is Said.ANSWER:
        return _UNASKED if with_token else None
    if answer is Said.UNAUTHENTICATED and with_token:
        token = _token()
        if token is None:
            return f"expected a token for it in {_TOKEN}, the file {_TOKEN_PATH} or ~/.ray/auth_token, got none"
        answer = _says(host, port, tls, token, deadline_s)
        if answer is Said.ANSWER:
            return None
        if answer is Said.UNAUTHENTICATED:
            return "expected a token that it accepts, got another"
    if answer is Said.OTHER and tls is None and speaks_tls(host, port, deadline_s):
        return ASKED_FOR
    return _REFUSED[answer]


_UNASKED = f"expected a Ray cluster that asks for a token, for {_MODE}=token is set, got one that asks for none"
_REFUSED = {
    Said.UNAUTHENTICATED:
        f"expected a token that it accepts (set {_MODE}=token with {_TOKEN} or {_TOKEN_PATH}), got none",
    Said.NOTHING: "expected a Ray cluster, got a connection and no answer",
    Said.OTHER: "expected a Ray cluster, got something that does not speak like one",
}  # fmt: skip


def _token() -> str | None:
    """What the user has to show, looked for where Ray does."""
    if token := os.environ.get(_TOKEN, "").strip():
        return token
    path = Path(os.environ.get(_TOKEN_PATH) or "~/.ray/auth_token")
    with contextlib.suppress(OSError, UnicodeError, RuntimeError):  # the last where nobody knows a home
        return path.expanduser().read_text("utf-8").strip() or None
    return None


def _says(host: str, port: int, tls: ssl.SSLContext | None, token: str | None, deadline_s: float) -> Said:
    """What is said on a new connection to whoever shows this token.

    Raises what a socket does where there is none, and TlsError where there is none with TLS.
    """
    plain = socket.create_connection((host, port), CONNECT_S)
    with plain if tls is None else wrapped(plain, tls, host, deadline_s) as connection:
        received = b""
        try:
            connection.sendall(request(_NAME, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", token))
            while (answer := said(received)) is Said.NOTHING:
                connection.settimeout(max(0.001, deadline_s - time.monotonic()))
                more = connection.recv(_MOST_BYTES)
                if not more and not received and tls is not None:
                    raise TlsError(NOT_OURS)
                if not more or len(received) > _MOST_BYTES:
                    return Said.OTHER
                received += more
        except TimeoutError:
            return Said.NOTHING
        except OSError:
            if tls is not None and not received:
                raise TlsError(NOT_OURS) from None
            return Said.OTHER
    return answer


def facts_of(address: str) -> ClusterFacts:
    """Look at the cluster at an address, and ask it what it is. Raises AddressError."""
    # Once more: a command that looked has loaded for seconds since, and for a cluster that is gone Ray waits long.
    look_at(address)
    # Whatever lies in the working folder under the name of a library is not what Ray's client imports.
    command = [sys.executable, "-P", "-c", _ASK, str(code_root()), address]
    try:
        found = subprocess.run(  # noqa: S603 - this very Python with a constant program
            command, capture_output=True, timeout=ASK_S, check=False,
        )  # fmt: skip
        told = json.loads(found.stdout)
    except subprocess.TimeoutExpired:
        raise AddressError(f"{address}: expected to be told what Ray it is, got nothing for {ASK_S:g} s") from None
    except ValueError:
        last = found.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AddressError(f"{address}: expected to be told what Ray it is, got {last[:200] or 'nothing'}") from None
    if "wrong" in told:
        raise AddressError(f"{address}: {told['wrong']}")
    return ClusterFacts(tuple(told["nodes"]))
