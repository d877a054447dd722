"""The certificates that a host lays beside its migration agent's greeting: the chip's VCEK, and AMD's ASK and ARK."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.root_keys import product_root
from node.migration_agent import Hello
from psp.firmware import SecurityProcessor
from psp.product_root import RootName
from psp.verifier import root_of


def agent_certified(greeting: bytes, psp: SecurityProcessor, laboratory: int = 0) -> bytes:
    """The greeting with the certificates that the key distribution service has for the chip, as its host gets them."""
    hello, chip, tcb = Hello.parse(greeting), psp.legacy.keys.chip, psp.firmware.reported_tcb
    root = product_root(chip.line.name, laboratory)
    vcek = root.vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb)
    certificates = (vcek, root.certificate(RootName.ASK), root.certificate(RootName.ARK))
    return Hello(hello.public_key, hello.report, certificates).pack()


def agent_roots(line: str, laboratory: int) -> Mapping[str, frozenset[str]]:
    """The roots that agents of a laboratory's hosts trust."""
    return root_of(product_root(line, laboratory).certificate(RootName.ARK))
