"""A Ray that speaks TLS, and what a user has set for that: whatever does not fit is one line before Ray is loaded."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from test_grpc_call import ANSWERED, REFUSED

from cluster import ray_tls
from cluster.cluster_address import AddressError, look_at

FILES = {"RAY_TLS_SERVER_CERT": "node.crt", "RAY_TLS_SERVER_KEY": "node.key", "RAY_TLS_CA_CERT": "ca.crt"}


def write_certificates(folder: Path, *addresses: str) -> dict[str, str]:
    """A CA, and a machine's certificate and key for these addresses; the settings that name them."""
    today = dt.datetime.now(dt.UTC)
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"authority of {folder.name}")])

    def made(name: str, own: ec.EllipticCurvePrivateKey, more: x509.ExtensionType) -> x509.Certificate:
        subject = issuer if own is authority else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        built = x509.CertificateBuilder(issuer, subject, own.public_key(), x509.random_serial_number())
        built = built.not_valid_before(today - dt.timedelta(1)).not_valid_after(today + dt.timedelta(1))
        return built.add_extension(more, critical=False).sign(authority, hashes.SHA256())

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(one)) for one in addresses])
    ca = made("authority", authority, x509.BasicConstraints(ca=True, path_length=None))
    pem = serialization.Encoding.PEM
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "node.crt").write_bytes(made("node", key, names).public_bytes(pem))
    (folder / "node.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"RAY_USE_TLS": "1", **{name: str(folder / file) for name, file in FILES.items()}}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_certificates(tmp_path_factory.mktemp("ours"), "127.0.0.1")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_USE_TLS", *FILES):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def tls_server(settings: dict[str, str], says: bytes) -> Iterator[str]:
    """Asks for a certificate of its own CA, as Ray's do, and says something to whoever shows one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["RAY_TLS_SERVER_CERT"], settings["RAY_TLS_SERVER_KEY"])
    context.load_verify_locations(settings["RAY_TLS_CA_CERT"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):
                while True:
                    accepted, _ = listening.accept()
                    with contextlib.suppress(ssl.SSLError):
                        held.append(context.wrap_socket(accepted, server_side=True))
                        held[-1].sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def set_all(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("asked", ["1", "true", "True"])
def test_a_cluster_with_tls_answers_who_has_certificates_of_its_authority(
    asked: str, certificates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {**certificates, "RAY_USE_TLS": asked})
    with tls_server(certificates, ANSWERED) as address:
        look_at(address)
    with tls_server(certificates, REFUSED) as address, pytest.raises(AddressError, match="expected a token"):
        look_at(address)


def test_a_cluster_with_tls_is_told_from_what_is_no_ray(certificates: dict[str, str]) -> None:
    with tls_server(certificates, ANSWERED) as address, pytest.raises(AddressError) as caught:
        look_at(address)
    assert str(caught.value) == (
        f"{address}: expected certificates, for TLS is spoken there (set RAY_USE_TLS=1 with RAY_TLS_SERVER_CERT, "
        "RAY_TLS_SERVER_KEY, RAY_TLS_CA_CERT), got none"
    )


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", ANSWERED, b""])
def test_where_tls_is_asked_for_nothing_else_will_do(
    says: bytes, certificates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_cluster_address import server

    set_all(monkeypatch, certificates)
    monkeypatch.setattr("cluster.cluster_address.FIND_OUT_S", 0.3)
    got = "something that does not speak it" if says else "a connection and no answer"
    with server(says) as address, pytest.raises(AddressError, match=rf"^{address}: expected a Ray .*, got {got}$"):
        look_at(address)


def test_certificates_of_another_authority_or_for_another_machine_are_named(
    certificates: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, certificates)
    theirs = "expected a certificate of RAY_TLS_CA_CERT for 127.0.0.1, got one that does not hold: "
    with tls_server(write_certificates(tmp_path / "foreign", "127.0.0.1"), ANSWERED) as address:
        with pytest.raises(AddressError, match=f"^{address}: {theirs}"):
            look_at(address)
        # Whoever believes that authority and is not believed by it.
        monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "foreign" / "ca.crt"))
        ours = "expected a Ray cluster that accepts the certificate in RAY_TLS_SERVER_CERT, got one that ends"
        with pytest.raises(AddressError, match=f"^{address}: {ours} the connection$"):
            look_at(address)
    elsewhere = write_certificates(tmp_path / "elsewhere", "10.0.0.1")
    set_all(monkeypatch, elsewhere)
    with tls_server(elsewhere, ANSWERED) as address, pytest.raises(AddressError, match=f"^{address}: {theirs}"):
        look_at(address)


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        *((name, "", f"expected files in .*, for RAY_USE_TLS is set, got no {name}") for name in FILES),
        *((name, "/nowhere", f"{name}: expected a file, got No such file or directory: /nowhere") for name in FILES),
        ("RAY_TLS_CA_CERT", __file__, f"RAY_TLS_CA_CERT: expected certificates in PEM, got none: {__file__}"),
        ("RAY_TLS_SERVER_CERT", __file__, "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY: expected .*, got other: .*"),
        ("RAY_TLS_SERVER_KEY", __file__, "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY: expected .*, got other: .*"),
    ],
)
def test_a_setting_that_is_of_no_use_is_named_before_anybody_is_asked(
    name: str, value: str, wrong: str, certificates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {**certificates, name: value})
    with pytest.raises(AddressError, match=f"^10.0.0.1:6379: {wrong}$"):
        look_at("10.0.0.1:6379")


@pytest.mark.parametrize(("first", "then", "ways"), [("1", "0", ("without", "with")), ("0", "1", ("with", "without"))])
def test_a_process_does_not_change_to_tls_or_from_it(
    first: str, then: str, ways: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_tls._with_the_first.cache_clear()
    try:
        for asked in (first, first):
            monkeypatch.setenv("RAY_USE_TLS", asked)
            ray_tls.check_same_as_before()
        monkeypatch.setenv("RAY_USE_TLS", then)
        with pytest.raises(ray_tls.TlsError) as caught:
            ray_tls.check_same_as_before()
    finally:
        ray_tls._with_the_first.cache_clear()
    now, before = ways
    assert str(caught.value) == f"expected a new process for a Ray {now} TLS, got one that has had a Ray {before}"
