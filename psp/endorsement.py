"""Which key a guest's reports and derived keys rest on: the chip's VCEK, or its provider's VLEK."""

from __future__ import annotations

from psp.elliptic import PrivateKey
from psp.guest_context import VCEK_DISABLED, GuestContext
from psp.report_keys import KeySelection, ReportKeys, SigningKey
from psp.snp_configuration import SnpConfiguration
from psp.status import PspError, Status


class Endorsement:
    """The keys of one chip at the TCB version that its host reports."""

    def __init__(self, chip: ReportKeys, configuration: SnpConfiguration) -> None:
        self.chip = chip
        self._configuration = configuration

    def chosen(self, selection: int, context: GuestContext) -> SigningKey:
        """What a guest's selection means. Raises PspError.

        INVALID_PARAM for one that is reserved, INVALID_KEY where there is no VLEK, or the guest was launched without
        leave to use a VCEK.
        """
        if selection not in _SELECTIONS:
            raise PspError(Status.INVALID_PARAM)
        vlek = bool(self._configuration.vlek)
        wants_vlek = selection == KeySelection.VLEK or (selection == KeySelection.VLEK_IF_LOADED and vlek)
        if not vlek if wants_vlek else context.flags & VCEK_DISABLED:
            raise PspError(Status.INVALID_KEY)
        return SigningKey.VLEK if wants_vlek else SigningKey.VCEK

    def key(self, which: SigningKey) -> PrivateKey:
        """The private key, made when it is first asked for."""
        tcb = self._configuration.reported_tcb
        if which is SigningKey.VLEK:
            return self.chip.vlek_key(self._configuration.vlek, tcb)
        return self.chip.vcek_key(tcb)


_SELECTIONS = frozenset(KeySelection)
