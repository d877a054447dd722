"""A link between two ports, and the place where somebody may sit on it.

Without a tap packets cross as they are and runs of them cross whole. A tap sees each packet as it is on the wire,
with whatever protection it has, and says what goes on in its place: nothing, something else, more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from tio.ide.completion_run import CompletionRun
from tio.ide.stream import IdeTlp
from tio.ide.tlp import Tlp
from tio.ide.write_run import WriteRun

Packet = IdeTlp | Tlp
"""Protected, or in the clear."""
Run = WriteRun | CompletionRun
"""Many protected ones in one go."""


class Way(Enum):
    """Which way a packet goes."""

    DOWN = "to the device"
    UP = "to the root port"


Tap = Callable[[Way, Packet], Iterable[Packet]]


class Link:
    """One hop. ``tap`` is None while nobody looks."""

    def __init__(self) -> None:
        self.tap: Tap | None = None
        self.injected: dict[Way, list[Packet]] = {way: [] for way in Way}
        """What a tap put on the wire by itself; it goes before what is carried next."""

    @property
    def is_bare(self) -> bool:
        """Whether nobody looks, and nothing waits to go before the next."""
        return self.tap is None and not any(self.injected.values())

    def carry(self, way: Way, packets: Iterable[Packet | Run]) -> list[Packet | Run]:
        """What arrives at the other end of what is sent."""
        before, self.injected[way] = self.injected[way], []
        if self.tap is None:
            return [*before, *packets]
        tap = self.tap
        return [*before, *[arrived for one in _single(packets) for arrived in tap(way, one)]]


def _single(packets: Iterable[Packet | Run]) -> Iterator[Packet]:
    for one in packets:
        if isinstance(one, WriteRun | CompletionRun):
            yield from one.packets()
        else:
            yield one
