"""The owner of a SEV or SEV-ES guest of a scenario: the relying party's part in a launch, by AMD's formats.

It checks the platform's certificates up to the laboratory's root, opens a session under its policy, and packs the
guest's disk key for the measurement that it works out from the image. It answers at once; that its machine is
elsewhere costs no time, as the host's own fetching of images does not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cluster.root_keys import product_root
from node.counter_random import CounterRandom
from node.cpu_model import model_of
from node.expected_measurement import sev_digest
from node.firmware_image import FirmwareImage
from node.generation import CAPABILITIES
from node.guest import GuestSpec
from node.mac_address import mac_of
from node.measured_launch import launch_vmsas, sev_launch_ranges
from node.program import Placement
from psp import guest_owner
from psp.chip_identity import ChipIdentity
from psp.elliptic import pack_public_key
from psp.guest_owner import Expected, OwnerSession, WrongMeasurementError
from psp.policy import LegacyPolicy
from psp.sev_certificate import CertificateError, KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import NONCE_BYTES
from workloads.attested_start import launch_secret, unwrapped
from workloads.keyed_content import KeyedContent
from workloads.relying_party import NAME, disk_key

_MEASUREMENT_BYTES = 48


@dataclass(slots=True)
class LaunchOwner:
    """The owner of one guest, for one launch. ``firmware`` is the version it expects, ``chip`` one that AMD made."""

    guest: GuestSpec
    image: FirmwareImage
    firmware: tuple[int, int, int]
    chip: ChipIdentity
    laboratory: int = 0
    launch: int = 0
    """How many launches it has taken part in before."""
    _session: OwnerSession | None = field(default=None, init=False, repr=False)

    def answer(self, shown: bytes) -> bytes | None:
        """What a host's firmware needs next, or None."""
        try:
            return self._secret(shown) if len(shown) == _MEASUREMENT_BYTES else self._opened(shown)
        except (CertificateError, WrongMeasurementError):
            return None

    @property
    def policy(self) -> int:
        """No debugging, no sharing of its key; SEV-ES where it was ordered."""
        policy = LegacyPolicy.NODBG | LegacyPolicy.NOKS
        return int(policy | LegacyPolicy.ES if CAPABILITIES[self.guest.generation].encrypted_registers else policy)

    def _opened(self, shown: bytes) -> bytes:
        size, root = SevCertificate.SIZE, product_root(self.chip.line.name, self.laboratory)
        chain = PlatformChain.parse(shown[:size], shown[size:])
        if chain.cek.public_key == pack_public_key(self.chip.cek_key().public_key()):
            chain = replace(chain, cek=root.certified_cek(chain.cek))
        ark, ask = root.amd_certificate(KeyUsage.ARK), root.amd_certificate(KeyUsage.ASK)
        opened = self._session = guest_owner.open_session(chain, ark, ask, self.policy, self._random)
        return opened.certificate.pack() + opened.session.pack() + self.policy.to_bytes(4, "little")

    def _secret(self, measurement: bytes) -> bytes | None:
        if self._session is None:
            return None
        guest, model = self.guest, model_of(self.guest.cpu_model)
        areas = launch_vmsas(self.image, guest.vcpus, model, 0) if self.policy & LegacyPolicy.ES else ()
        expected = Expected(self.firmware, self.policy, sev_digest(sev_launch_ranges(self.image), areas))
        header, packet = guest_owner.secret_for(
            self._session.keys, expected, measurement, launch_secret(self._disk_key), self._random("IV", NONCE_BYTES)
        )
        return header.pack() + packet

    @property
    def _disk_key(self) -> bytes:
        """The same that the relying party's own program gives out."""
        party, _ = unwrapped(self.guest.program)
        place = Placement(party, 0, 0, 0, 0, 0, self.guest.seed)
        return disk_key(KeyedContent.of(place, NAME), mac_of(self.guest.name, 0))

    def _random(self, purpose: str, length: int) -> bytes:
        # Of this platform and launch alone: a session that two platforms could open would be worth less.
        chip = hashlib.sha256(self.chip.chip_id).hexdigest()
        return CounterRandom(self.guest.seed).octets(self.guest.name, f"owner {chip} {purpose}", self.launch, length)


def launch_owners(
    guests: Callable[[str], GuestSpec | None], images: Mapping[str, FirmwareImage], firmware: tuple[int, int, int],
    chip: Callable[[], ChipIdentity], laboratory: int,
) -> Callable[[str, bytes], bytes | None]:
    """Who answers for the owners of a host's VMs; sessions are opened anew with each launch."""
    open_now: dict[str, LaunchOwner] = {}
    launches: Counter[str] = Counter()

    def answer(vm: str, shown: bytes) -> bytes | None:
        spec = guests(vm)
        if spec is None or not spec.owned:
            return None
        if len(shown) != _MEASUREMENT_BYTES:
            open_now[vm] = LaunchOwner(spec, images[spec.firmware], firmware, chip(), laboratory, launches[vm])
            launches[vm] += 1
        owner = open_now.get(vm)
        return None if owner is None else owner.answer(shown)

    return answer
