"""A guest owner's side of the SEV interface: trust a platform, open a session, check a measurement, pack a secret."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from psp import elliptic, sev_certificate
from psp.amd_certificate import AmdCertificate
from psp.launch_digest import launch_measure
from psp.secret_packet import PacketHeader, pack_secret
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain, check_chain
from psp.sev_session import KEY_BYTES, NONCE_BYTES, Session, TransportKeys, seal

MEASURE_BYTES = 32


class WrongMeasurementError(ValueError):
    """What the firmware measured is not what the owner expects; nothing secret may go there."""


@dataclass(frozen=True, slots=True)
class OwnerSession:
    """What goes to the host, certificate and session block, and what stays with the owner."""

    certificate: SevCertificate
    session: Session
    keys: TransportKeys


@dataclass(frozen=True, slots=True)
class Expected:
    """What an owner expects of a launch. ``api`` is (major, minor, build) of the firmware it accepts."""

    api: tuple[int, int, int]
    policy: int
    digest: bytes


def open_session(
    chain: PlatformChain, ark: AmdCertificate, ask: AmdCertificate, policy: int, random: Callable[[str, int], bytes]
) -> OwnerSession:
    """A session with the platform of a chain, for a guest of a policy. Raises CertificateError before anything else."""
    check_chain(chain, ark, ask)
    own = elliptic.private_key(random("GODH", elliptic.SEED_BYTES))
    z = elliptic.shared_secret(own, sev_certificate.public_key(chain.pdh))
    keys = TransportKeys(random("TEK", KEY_BYTES), random("TIK", KEY_BYTES))
    session = seal(z, policy, keys, random("session nonce", NONCE_BYTES), random("wrap IV", NONCE_BYTES))
    certificate = sev_certificate.unsigned(own.public_key(), KeyUsage.PDH, (chain.pdh.api_major, chain.pdh.api_minor))
    return OwnerSession(certificate, session, keys)


def check_measurement(keys: TransportKeys, expected: Expected, measurement: bytes) -> None:
    """Raise WrongMeasurementError unless LAUNCH_MEASURE's 48 bytes prove what is expected."""
    measure, nonce = measurement[:MEASURE_BYTES], measurement[MEASURE_BYTES:]
    ours = launch_measure(keys.tik, expected.api, expected.policy, expected.digest, nonce)
    if len(nonce) != NONCE_BYTES or not hmac.compare_digest(measure, ours):
        raise WrongMeasurementError("measurement: expected that of the image, policy and firmware named, got another")


def secret_for(
    keys: TransportKeys, expected: Expected, measurement: bytes, secret: bytes, iv: bytes
) -> tuple[PacketHeader, bytes]:
    """LAUNCH_SECRET's header and packet, for the guest with this measurement. Raises WrongMeasurementError."""
    check_measurement(keys, expected, measurement)
    return pack_secret(keys, secret, measurement[:MEASURE_BYTES], iv, expected.api[:2])
