"""Who certifies chips' keys in the laboratory, as AMD does: of chips that exist, for any TCB version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cluster.laboratory.chip_hands import GLITCHED
from cluster.root_keys import product_root
from psp.amd_certificate import AmdCertificate
from psp.chip_identity import ChipIdentity
from psp.elliptic import pack_public_key, parse_public_key
from psp.product_root import ProductRoot, RootName
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.verifier import Evidence, root_of
from psp.x509_profile import EPOCH

NOW = int(EPOCH.timestamp()) + 86_400
"""When the laboratory's owners judge: the day after its certificates were issued."""
_CHIP_ID, _REPORTED_TCB = slice(0x1A0, 0x1E0), slice(0x180, 0x188)


@dataclass(frozen=True, slots=True)
class KeyService:
    """The chips of one line that have been made."""

    chips: tuple[ChipIdentity, ...]

    @property
    def root(self) -> ProductRoot:
        """Whose keys sign."""
        return product_root(self.chips[0].line.name)

    # The SEV interface.

    def amd(self, usage: KeyUsage) -> AmdCertificate:
        """ARK or ASK."""
        return self.root.amd_certificate(usage)

    def certified(self, chain: PlatformChain) -> PlatformChain:
        """The chain with its CEK's certificate, if that is the key of a chip; as it was, if not."""
        known = {pack_public_key(chip.cek_key().public_key()) for chip in self.chips}
        if chain.cek.public_key not in known:
            return chain
        return replace(chain, cek=_certified(self.root, chain.cek))

    # SEV-SNP.

    @property
    def trusted(self) -> dict[str, frozenset[str]]:
        """The root, as verifiers trust it."""
        return dict(root_of(self.root.certificate(RootName.ARK)))

    def evidence(self, report: bytes, *, with_list: bool) -> Evidence:
        """A report and what belongs to it, found by the chip and the TCB version that it names."""
        root = self.root
        named, tcb = report[_CHIP_ID], int.from_bytes(report[_REPORTED_TCB], "little")
        leaf = next(
            (
                _vcek(root, chip.chip_id, pack_public_key(chip.vcek_key(tcb).public_key()), tcb)
                for chip in self.chips
                if chip.chip_id.ljust(len(named), b"\0") == named
            ),
            None,
        )
        ark, ask = root.certificate(RootName.ARK), root.certificate(RootName.ASK)
        return Evidence(report, ark, ask, leaf, (self._list(),) if with_list else ())

    def _list(self) -> bytes:
        """The ASK of a line whose chips have been opened is revoked, and with it all of the line's keys."""
        line = self.root.line
        return _list_of(self.root, (line.first_serial + 1,) if line.name in GLITCHED else ())


# Signing takes long, and the chips of the laboratory's scenes are always the same few.


@lru_cache(maxsize=64)
def _certified(root: ProductRoot, cek: SevCertificate) -> SevCertificate:
    return root.certified_cek(cek)


@lru_cache(maxsize=64)
def _vcek(root: ProductRoot, chip_id: bytes, public_key: bytes, tcb: int) -> bytes:
    return root.vcek(parse_public_key(public_key), chip_id, tcb)


@lru_cache(maxsize=8)
def _list_of(root: ProductRoot, serials: tuple[int, ...]) -> bytes:
    return root.revocation_list(serials)
