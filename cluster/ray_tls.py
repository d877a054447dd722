"""TLS of a Ray that is joined: the user's certificate, key and CA, named where Ray looks for them, and what fails.

Both sides show a certificate of the same CA, ours too, and the name or number of a
machine has to stand in its own (Ray's manual, "TLS Authentication").
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from functools import cache
from pathlib import Path

_USE = "RAY_USE_TLS"
_CERTIFICATE, _KEY, _AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"
_FILES = (_CERTIFICATE, _KEY, _AUTHORITY)
SETTINGS = (_USE, *_FILES)
"""What a user sets to speak TLS with a cluster."""
_PROTOCOL = "h2"
"""What is to be spoken inside; gRPC insists on that."""


class TlsError(Exception):
    """No TLS with a cluster; the message is what was expected and what was got."""


def is_wanted() -> bool:
    """Whether the user asks for TLS, in the ways that Ray understands."""
    return os.environ.get(_USE, "").lower() in ("1", "true")


def check_same_as_before() -> None:
    """Raise TlsError in a process that was to speak TLS with a Ray before, and now not, or the other way round.

    Ray reads that once, and waits for ever for who does not speak as it does.
    """
    if is_wanted() != _with_the_first():
        ways = ("without", "with")
        now, before = ways[is_wanted()], ways[not is_wanted()]
        raise TlsError(f"expected a new process for a Ray {now} TLS, got one that has had a Ray {before}")


@cache
def _with_the_first() -> bool:
    """Whether this process's first Ray is one with TLS."""
    return is_wanted()


def own_papers() -> ssl.SSLContext:
    """What we show, and whom we believe. Raises TlsError, which names the setting that is wrong."""
    for name in _FILES:
        path = os.environ.get(name)
        if not path:
            raise TlsError(f"expected files in {', '.join(_FILES)}, for {_USE} is set, got no {name}")
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise TlsError(f"{name}: expected a file, got {error.strerror or error}: {path}") from None
    certificate, key, authority = (os.environ[name] for name in _FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([_PROTOCOL])
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise TlsError(f"{_AUTHORITY}: expected certificates in PEM, got none: {authority}") from None
    try:
        context.load_cert_chain(certificate, key, password="")  # a key that is locked is not asked for on the terminal
    except ssl.SSLError:
        wanted = f"{_CERTIFICATE}, {_KEY}: expected a certificate and its key in PEM, not locked"
        raise TlsError(f"{wanted}, got other: {certificate}, {key}") from None
    return context


def wrapped(connection: socket.socket, context: ssl.SSLContext, host: str, deadline_s: float) -> ssl.SSLSocket:
    """The connection with TLS over it. Raises TlsError, for want of an answer at a time of ``time.monotonic``."""
    connection.settimeout(max(0.001, deadline_s - time.monotonic()))
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise TlsError(
            f"expected a certificate of {_AUTHORITY} for {host}, got one that does not hold: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        raise TlsError(NOT_OURS if "ALERT" in (error.reason or "") else _NO_TLS) from None
    except TimeoutError:
        raise TlsError(_SILENT) from None
    except OSError:
        raise TlsError(_NO_TLS) from None


def speaks_tls(host: str, port: int, deadline_s: float) -> bool:
    """Whether TLS is spoken at an address, by whomever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([_PROTOCOL])
    try:
        with socket.create_connection((host, port), max(0.001, deadline_s - time.monotonic())) as connection:
            context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True


_NO_TLS = f"expected a Ray cluster with TLS, for {_USE} is set, got something that does not speak it"
_SILENT = "expected a Ray cluster, got a connection and no answer"
NOT_OURS = f"expected a Ray cluster that accepts the certificate in {_CERTIFICATE}, got one that ends the connection"
"""What is wrong where TLS is agreed on and then nothing said: only then servers judge, and Ray's give no reason."""
ASKED_FOR = f"expected certificates, for TLS is spoken there (set {_USE}=1 with {', '.join(_FILES)}), got none"
"""What is wrong where TLS is spoken and the user has not asked for it."""
