"""Which key a guest's reports and derived keys rest on: the chip's VCEK, or its provider's VLEK."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from psp import elliptic
from psp.chip_identity import ChipIdentity
from psp.guest_context import VCEK_DISABLED, GuestContext
from psp.installed_firmware import tcb_at_most
from psp.snp_configuration import SnpConfiguration
from psp.status import PspError, Status
from psp.vlek import Hashstick


class SigningKey(IntEnum):
    """SIGNING_KEY of a report's key information (SEV-SNP firmware ABI, table 23)."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class KeySelection(IntEnum):
    """KEY_SEL of a request for a report or a key; 3 is reserved."""

    VLEK_IF_LOADED = 0
    VCEK = 1
    VLEK = 2


class Endorsement:
    """The keys of a chip, and what its host has loaded. Nothing is made before somebody asks."""

    def __init__(self, chip: Callable[[], ChipIdentity], configuration: SnpConfiguration) -> None:
        self._chip = chip
        self._configuration = configuration
        self._vlek: tuple[Hashstick | None, int, elliptic.PrivateKey] | None = None
        """The one that was last asked for: going down to a TCB version takes hundreds of hashes."""

    @property
    def chip_id(self) -> bytes:
        """CHIP_ID."""
        return self._chip().chip_id

    def chosen(self, selection: int, context: GuestContext) -> SigningKey:
        """What a guest's selection means. Raises PspError.

        INVALID_PARAM for one that is reserved, INVALID_KEY where there is no VLEK, or the guest was launched without
        leave to use a VCEK.
        """
        if selection not in _SELECTIONS:
            raise PspError(Status.INVALID_PARAM)
        vlek = self._configuration.vlek is not None
        wants_vlek = selection == KeySelection.VLEK or (selection == KeySelection.VLEK_IF_LOADED and vlek)
        if not vlek if wants_vlek else context.flags & VCEK_DISABLED:
            raise PspError(Status.INVALID_KEY)
        return SigningKey.VLEK if wants_vlek else SigningKey.VCEK

    def key(self, which: SigningKey, tcb: int) -> elliptic.PrivateKey:
        """A choice's private key for a TCB version. Raises PspError(INVALID_KEY) for a VLEK that does not reach it."""
        if which is SigningKey.VCEK:
            return self._chip().vcek_key(tcb)
        stick = self._configuration.vlek
        if self._vlek is None or self._vlek[:2] != (stick, tcb):
            if stick is None or not tcb_at_most(tcb, stick.tcb):
                raise PspError(Status.INVALID_KEY)
            self._vlek = stick, tcb, stick.lowered(tcb).key()
        return self._vlek[2]


_SELECTIONS = frozenset(KeySelection)
