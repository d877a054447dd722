"""The certificates that a host lays beside its migration agent's greeting: the chip's VCEK, and AMD's ASK and ARK."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.root_keys import product_root
from node.migration_agent import Hello
from psp.firmware import SecurityProcessor
from psp.product_root import RootName
from psp.verifier import root_of


def agent_certified(greeting: bytes, psp: SecurityProcessor, laboratory: int = 0) -> bytes:
    """The greeting with the certificates that the key distribution service has for the chip, as its host gets them."""
    hello, chip, tcb = Hello.parse(greeting), psp.legacy.keys.chip, psp.firmware.reported_tcb
    point = chip.vcek_key(tcb).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    certificates = _certificates(chip.line.name, laboratory, point, chip.chip_id, tcb)
    return Hello(hello.public_key, hello.report, certificates).pack()


@lru_cache(maxsize=4096)
def _certificates(line: str, laboratory: int, vcek: bytes, chip_id: bytes, tcb: int) -> tuple[bytes, ...]:
    """Of one chip at one TCB version: always the same, and a signature of RSA takes a while."""
    root, point = product_root(line, laboratory), EllipticCurvePublicKey.from_encoded_point(SECP384R1(), vcek)
    return root.vcek(point, chip_id, tcb), root.certificate(RootName.ASK), root.certificate(RootName.ARK)


def agent_roots(line: str, laboratory: int) -> Mapping[str, frozenset[str]]:
    """The roots that agents of a laboratory's hosts trust."""
    return root_of(product_root(line, laboratory).certificate(RootName.ARK))
