"""TIO_ASID_FENCE_CLEAR and TIO_ASID_FENCE_STATUS (``spec/tio/iommu.md``, section 6)."""

from __future__ import annotations

from collections.abc import Callable

from psp.asid_ranges import AsidRanges
from psp.commands import SnpCommand
from psp.host_memory import HostMemory
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status
from psp.tsm import tio_buffers as buffers
from psp.tsm.contexts import Contexts
from psp.tsm.trusted_io import TrustedIo

_STATUS_BYTES = 8


class FenceCommands:
    """Handlers of the commands."""

    def __init__(
        self,
        memory: HostMemory,
        contexts: Contexts,
        guests: SnpGuests,
        ranges: AsidRanges,
        trusted_io: Callable[[], TrustedIo],
    ) -> None:
        self._memory = memory
        self._contexts = contexts
        self._guests = guests
        self._ranges = ranges
        self._trusted_io = trusted_io

    def clear(self, order: buffers.FenceClear) -> None:
        """TIO_ASID_FENCE_CLEAR: INVALID_TDI_STATE while a TDI of the guest runs."""
        self._contexts.device(order.device)
        context = self._guests.in_state(order.gctx, SnpCommand.TIO_ASID_FENCE_CLEAR)
        asid = self._guests.active_asid(context)
        if not self._trusted_io().fence_clear(asid):
            raise PspError(Status.INVALID_TDI_STATE)

    def status(self, order: buffers.FenceStatus) -> None:
        """TIO_ASID_FENCE_STATUS."""
        self._contexts.device(order.device)
        if order.asid not in self._ranges.snp:
            raise PspError(Status.INVALID_ASID)
        self._memory.check_writable(order.address, _STATUS_BYTES)
        said = self._trusted_io().fence_status(order.asid)
        self._memory.write(order.address, said.to_bytes(_STATUS_BYTES, "little"))
