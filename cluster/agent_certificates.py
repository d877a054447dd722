"""What a host lays beside its migration agent's greeting: the chip's VCEK, AMD's ASK and ARK, and the ARK's list."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgpack
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.root_keys import product_root
from node.migration_agent import Hello
from node.packing import packed
from psp.firmware import SecurityProcessor
from psp.product_root import RootName
from psp.verifier import root_of


def agent_certified(greeting: bytes, psp: SecurityProcessor, laboratory: int = 0) -> bytes:
    """The greeting with the certificates that the key distribution service has for the chip, as its host gets them.

    Two greetings, a handler's and an agent's, have them each.
    """
    if (both := _two(greeting)) is not None:
        return packed(tuple([agent_certified(one, psp, laboratory) for one in both]))
    hello = Hello.parse(greeting)
    return Hello(hello.public_key, hello.report, own_chain(psp, laboratory)).pack()


def with_own_chain(greetings: bytes, psp: SecurityProcessor, laboratory: int = 0) -> bytes:
    """Two greetings that came, and the certificates of the chip that they came to: its agent has to prove itself."""
    both = _two(greetings)
    return greetings if both is None else packed((*both, own_chain(psp, laboratory)))


def _two(greetings: bytes) -> tuple[bytes, bytes] | None:
    """A handler's and an agent's; None where it is no pair, whatever it is."""
    try:
        match msgpack.unpackb(greetings, use_list=False):
            case (bytes(handler), bytes(agent)):
                return handler, agent
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        pass
    return None


def own_chain(psp: SecurityProcessor, laboratory: int = 0) -> tuple[bytes, ...]:
    """VCEK, ASK and ARK of a chip, and the list of what its ARK has revoked, in DER."""
    chip, tcb = psp.legacy.keys.chip, psp.firmware.reported_tcb
    point = chip.vcek_key(tcb).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return _certificates(chip.line.name, laboratory, point, chip.chip_id, tcb)


@lru_cache(maxsize=4096)
def _certificates(line: str, laboratory: int, vcek: bytes, chip_id: bytes, tcb: int) -> tuple[bytes, ...]:
    """Of one chip at one TCB version: always the same, and a signature of RSA takes a while."""
    root, point = product_root(line, laboratory), EllipticCurvePublicKey.from_encoded_point(SECP384R1(), vcek)
    ask, ark = root.certificate(RootName.ASK), root.certificate(RootName.ARK)
    return root.vcek(point, chip_id, tcb), ask, ark, root.revocation_list()


def agent_roots(line: str, laboratory: int) -> Mapping[str, frozenset[str]]:
    """The roots that agents of a laboratory's hosts trust."""
    return root_of(product_root(line, laboratory).certificate(RootName.ARK))
