"""A platform's certificates as its host shows them to a source whose guest's policy has the SEV bit.

PDH_CERT_EXPORT gives the CEK without AMD's signature, which comes from the key distribution service by the chip's
identity; ASK and ARK come from files (SEV API, PDH_CERT_EXPORT and SEND_START).
"""

from __future__ import annotations

from dataclasses import replace

from cluster.root_keys import product_root
from psp.chip_identity import ChipIdentity
from psp.elliptic import pack_public_key
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain


def certified(shown: bytes, chip: ChipIdentity, laboratory: int = 0) -> bytes:
    """PDH and chain with AMD's signature over the CEK, if it is that of a chip it made, and ASK and ARK behind them."""
    size, root = SevCertificate.SIZE, product_root(chip.line.name, laboratory)
    chain = PlatformChain.parse(shown[:size], shown[size:])
    if chain.cek.public_key == pack_public_key(chip.cek_key().public_key()):
        chain = replace(chain, cek=root.certified_cek(chain.cek))
    amd = [root.amd_certificate(usage).pack() for usage in (KeyUsage.ASK, KeyUsage.ARK)]
    return b"".join([chain.pdh.pack(), chain.pack(), *amd])
