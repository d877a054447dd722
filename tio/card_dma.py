"""How a function of a card reaches its host's memory: as packets, trusted or not as the state of its TDI says.

Source: PCI Express base specification 6.x, 11.4 (T bit), 6.33.3 (streams), 2.2.7 and 2.3.1 (requests and their
completions), 2.7.2.2 (poisoned data). Rules:

- In RUN every request is trusted and goes on a bound stream: to a peer on one that BIND_P2P_STREAM has bound, else on
  the stream of the lock; without it nothing goes.
- Without a lock, or without a TDI, requests go in the clear. In CONFIG_LOCKED and ERROR nothing goes.
- An interrupt is trusted in RUN if the lock holds the MSI-X table, and else is not.
- A request that is refused, times out or is answered wrongly is a DmaFault; a write that is lost nobody hears of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tio.card_link import CardLink
from tio.dma_port import DmaFault
from tio.ide import IdeError, IdeStream, Outcome, StreamState, Tlp, Waiting
from tio.ide.requests import read_bytes, span, write_bytes
from tio.pci import Command, PciFunction
from tio.tdisp import LockFlags, Tampering, TdiState

_BORDER = 4096
_ADDRESSES = 1 << 64
_MOST_AT_ONCE = 64
"""Read requests under way together."""
_LEAST_RUN_PACKETS = 2
_WRONG = {
    Outcome.MISSING: Tampering.COMPLETION,
    Outcome.REFUSED: Tampering.COMPLETION,
    Outcome.OTHER_T: Tampering.COMPLETION,
    Outcome.MISFIT: Tampering.COMPLETION,
    Outcome.POISONED: Tampering.POISONED,
}
_BY_POLICY = (Outcome.MISSING, Outcome.REFUSED)


class CardDma:
    """A ``DmaPort`` of one function: made first, for its device, and attached to its card.

    ``refusal_ends``: a trusted request that is refused or times out takes the TDI to ERROR, which the specification
    leaves to the device; without it the device's work fails and the TDI goes on.
    """

    def __init__(
        self, *, most_payload_bytes: int = 256, most_read_bytes: int = 4096, refusal_ends: bool = False
    ) -> None:
        self._payload_bytes = most_payload_bytes
        self._read_bytes = most_read_bytes
        self._refusal_ends = refusal_ends
        self._link: CardLink | None = None
        self._function: PciFunction | None = None

    def attach(self, link: CardLink, function: PciFunction) -> None:
        """Be the port of this function."""
        self._link, self._function = link, function
        function.interrupts = _Interrupts(self)

    def read(self, address: int, length: int) -> bytes:
        """Load, in requests that cross no border of 4 KiB. Raises DmaFault."""
        link, function, tee = self._allowed(address, length, write=False)
        if not length:
            return b""
        make = partial(read_bytes, function.requester_id)
        pieces = list(_pieces(address, length, self._read_bytes))
        parts = []
        for at in range(0, len(pieces), _MOST_AT_ONCE):
            some = pieces[at : at + _MOST_AT_ONCE]
            parts += self._asked(link, function, [partial(make, *piece) for piece in some], tee=tee)
            if parts[-1].outcome is not Outcome.ANSWERED:
                raise DmaFault(address, length, write=False)
        return b"".join([one.data for one in parts])

    def write(self, address: int, data: bytes) -> None:
        """Post, in packets of the largest payload. Raises DmaFault where nothing may be sent."""
        link, function, tee = self._allowed(address, len(data), write=True)
        if data:
            self._post(link, function, address, data, tee=tee)

    def interrupt(self, vector: int) -> bool:
        """Fire a vector of the function; whether a write went out."""
        return self._function is not None and self._function.interrupt(vector)

    def write_interrupt(self, address: int, data: bytes) -> None:
        """The write of an interrupt. Raises DmaFault."""
        link, function = self._master(address, len(data), write=True)
        tdi, tee = function.tdi, False
        if tdi is not None:
            lock = tdi.lock
            tee = tdi.state is TdiState.RUN and lock is not None and bool(lock.request.flags & LockFlags.LOCK_MSIX)
            if not tdi.may_send(tee=tee):
                raise DmaFault(address, len(data), write=True)
        self._post(link, function, address, data, tee=tee)

    # Within.

    def _master(self, address: int, length: int, *, write: bool) -> tuple[CardLink, PciFunction]:
        """Link and function, if the host lets the function be bus master, and the address is one."""
        link, function = self._link, self._function
        inside = address >= 0 and address + length <= _ADDRESSES
        if link is None or function is None or not inside or Command.BUS_MASTER not in function.space.command:
            raise DmaFault(address, length, write=write)
        return link, function

    def _allowed(self, address: int, length: int, *, write: bool) -> tuple[CardLink, PciFunction, bool]:
        """The same, and the T bit that its requests have now."""
        link, function = self._master(address, length, write=write)
        state = TdiState.CONFIG_UNLOCKED if function.tdi is None else function.tdi.state
        if state in (TdiState.CONFIG_LOCKED, TdiState.ERROR):
            raise DmaFault(address, length, write=write)
        return link, function, state is TdiState.RUN

    def _asked(
        self, link: CardLink, function: PciFunction, build: list[Callable[[int], Tlp]], *, tee: bool
    ) -> list[Waiting]:
        """Ask all of them; the last that is looked at is the first that went wrong."""
        if tee:
            first, last = span(build[0](0))[0], sum(span(build[-1](0)))
            if self._bound_stream(link, function, first, last - first) is None:
                return [Waiting(build[0](0), tee=tee)]
        out: list[Waiting] = []
        try:
            asked = link.ask(build, tee=tee)
        except IdeError:  # every tag waits for a completion of before
            return [Waiting(build[0](0), tee=tee)]
        for one in asked:
            out.append(one)
            if one.outcome is not Outcome.ANSWERED:
                if tee and function.tdi is not None and (self._refusal_ends or one.outcome not in _BY_POLICY):
                    function.tdi.tamper(_WRONG[one.outcome])
                break
        return out

    def _post(self, link: CardLink, function: PciFunction, address: int, data: bytes, *, tee: bool) -> None:
        octets, requester, at, size = memoryview(data), function.requester_id, 0, self._payload_bytes
        stream = self._bound_stream(link, function, address, len(data)) if tee else None
        if tee and stream is None:
            return
        head = min(-address % size, len(data))
        whole = (len(data) - head) // size * size
        lock = None if function.tdi is None else function.tdi.lock
        in_one_go = lock is not None and stream is lock.stream and not link.poisons
        if in_one_go and whole >= _LEAST_RUN_PACKETS * size:
            self._post_singly(link, requester, address, octets[:head], tee=tee)
            run = link.port.send_writes(requester, address + head, octets[head : head + whole], size)
            if run is None:
                return
            link.post([run])
            at = head + whole
        self._post_singly(link, requester, address + at, octets[at:], tee=tee)

    def _post_singly(self, link: CardLink, requester: int, address: int, octets: memoryview, *, tee: bool) -> None:
        packets = [
            write_bytes(requester, start, octets[start - address : start - address + length].tobytes())
            for start, length in _pieces(address, len(octets), self._payload_bytes)
        ]
        if link.poisons:
            packets = [one.as_poisoned() for one in packets]
        if packets:
            link.post(link.port.send(packets, tee=tee))

    @staticmethod
    def _bound_stream(link: CardLink, function: PciFunction, address: int, length: int) -> IdeStream | None:
        """The stream to which trusted requests of these addresses belong, if it is bound and Secure.

        None where they belong to more than one.
        """
        for one in link.port.associations:
            for first, last in one.addresses:
                inside = first <= address and address + length - 1 <= last
                if first < address + length and address <= last and not inside:
                    return None
        stream = link.port.stream_of(read_bytes(function.requester_id, address, 1, 0))
        bound = stream is not None and function.tdi is not None and function.tdi.sends_on(stream)
        return stream if bound and stream is not None and stream.state is StreamState.SECURE else None


class _Interrupts:
    """The port on which a function's interrupts go."""

    def __init__(self, dma: CardDma) -> None:
        self._dma = dma

    def read(self, address: int, length: int) -> bytes:
        """There is nothing to read."""
        raise DmaFault(address, length, write=False)

    def write(self, address: int, data: bytes) -> None:
        """The write of an interrupt. Raises DmaFault."""
        self._dma.write_interrupt(address, data)


def _pieces(address: int, length: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Parts that end at borders of ``most_bytes``, a power of two of at most 4 KiB."""
    end = address + length
    while address < end:
        some = min(end - address, most_bytes - address % most_bytes)
        yield address, some
        address += some
