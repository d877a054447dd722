"""How much of a secret the adversaries hold, of all the bytes that reached them."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.oracle.ledger import Secret


@dataclass(frozen=True, slots=True)
class Measure:
    """When bytes count as held, and how many of them make a leak."""

    leak_bytes: int = 16
    """N of the definition: a leak is this many bytes of one secret. A row of attacks that yield less says so."""
    side_channel_bits: int = 16
    """As many more bits must have been guessed right than wrong: by chance that comes once in 65,536 times."""
    piece_bytes: int = 8
    """Bytes count in runs of at least this length: shorter ones turn up in random bytes by chance."""


class Holdings:
    """What everybody but its victim holds of one secret.

    Adversaries share what they hold. What one of them was answered through one
    channel is joined in the order in which it came, so a secret fetched in small
    reads one after another counts like one that was fetched at once.
    """

    def __init__(self, secret: Secret, measure: Measure) -> None:
        size = min(measure.piece_bytes, measure.leak_bytes)
        octets = secret.octets
        self.name = secret.name
        self.octets = octets
        self.held: set[int] = set()
        """Positions in the secret that were told to somebody before the victim published them."""
        self._pieces = [(octets[at : at + size], range(at, at + size)) for at in range(len(octets) - size + 1)]
        half = size // 2
        self._anchors = [octets[at : at + half] for at in range(0, len(octets) - half + 1, size - half + 1)]
        """Each piece holds one of these, which are a few: where none is, there is no piece."""
        self._overlap = size - 1
        self._tails: dict[tuple[object, object], bytes] = {}
        self._public: set[int] = set()
        self._misread: set[int] = set()

    def reached(self, party: object, channel: object, octets: bytes) -> None:
        """Bytes reached a party through a channel."""
        stream = self._tails.get((party, channel), b"") + octets
        self.held |= self._positions(stream) - self._public
        self._tails[party, channel] = stream[max(0, len(stream) - self._overlap) :]

    def misread(self, octets: bytes) -> None:
        """The victim was served these where it had written others: what it does with them is not its own will."""
        self._misread |= self._positions(octets)

    def published(self, octets: bytes) -> None:
        """The victim wrote these out for everybody."""
        self._public |= self._positions(octets) - self._misread

    def _positions(self, octets: bytes) -> set[int]:
        found: set[int] = set()
        if not any(anchor in octets for anchor in self._anchors):
            return found
        for piece, positions in self._pieces:
            if piece in octets:
                found.update(positions)
        return found
