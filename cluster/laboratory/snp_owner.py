"""The owner of an SNP guest: asks for a report with a nonce, judges it, and seals its secret for whoever it proves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.laboratory.key_service import NOW, KeyService
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.owner_secret import SECRET
from cluster.oracle.transcript import Transcript
from node.firmware_levels import firmware_level
from node.product import Product
from psp.elliptic import pack_public_key
from psp.verifier import LINES, NONCE_BYTES, Expectations, Rejected
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.wrong_launch import OWNERS_KEY, id_key, small_guest_digest
from workloads.secret_release import Release

_ALIAS_CHECK_COMPLETE = 1 << 5


@dataclass(slots=True)
class SnpOwner:
    """What it expects is worked out from its own image and from what its product has today, without a host."""

    transcript: Transcript
    victim: str
    habits: OwnerHabits
    product: Product
    keys: Callable[[], KeyService]
    _asked: int = field(default=0, init=False)

    def challenge(self) -> bytes:
        """A fresh nonce; those of before are worth nothing any more."""
        self._asked += 1
        return self._fresh("nonce")

    def judge(self, report: bytes, channel_key: bytes) -> bytes | None:
        """The secret, sealed for the key; None, and a complaint, for a report that it does not believe."""
        keys, habits = self.keys(), self.habits
        release = Release(SECRET, self._expected(keys), keys.trusted, fresh=habits.nonce)
        evidence = keys.evidence(report, with_list=habits.crl)
        try:
            return release.answer(evidence, self._fresh("nonce"), channel_key, NOW, self._fresh("ephemeral key"))
        except Rejected as rejected:
            self.transcript.complain(self.victim, str(rejected))
            return None

    def wait_in_vain(self) -> None:
        """The guest has nothing to show."""
        self.transcript.complain(self.victim, "no report: the firmware gave none to the guest")

    def _expected(self, keys: KeyService) -> Expectations:
        habits, product = self.habits, self.product
        today = firmware_level(product.name, product.line, product.firmware_api)
        floor = LINES[product.line.name].layout.split(today.tcb.to_bytes(8, "little")) if habits.min_tcb else None
        rented = frozenset({keys.chips[0].chip_id.ljust(64, b"\0")})
        return Expectations(
            product=product.name,
            chip_ids=rented if habits.chip_id else None,
            crl_demanded=habits.crl,
            debug_allowed=habits.debuggable or not habits.policy_bits,
            migration_allowed=not habits.policy_bits,
            platform_set=_ALIAS_CHECK_COMPLETE if habits.platform_info else 0,
            measurement=small_guest_digest(VICTIMS_CODE) if habits.measurement else None,
            min_tcb=floor,
            min_launch_tcb=floor,
            id_key_digests=frozenset({_own_digest()}) if habits.id_key else None,
        )

    def _fresh(self, purpose: str) -> bytes:
        return hashlib.shake_128(f"{self.victim}'s owner {self._asked} {purpose}".encode()).digest(NONCE_BYTES)


def _own_digest() -> bytes:
    return hashlib.sha384(pack_public_key(id_key(OWNERS_KEY).public_key())).digest()
