"""Collects every key of a run where it is drawn, and looks for them in whatever it is given, in many spellings."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from node.board import Board
from node.counter_random import CounterRandom

PUBLIC = frozenset({"psp measurement nonce", "psp report id"})
"""Random numbers that firmware hands out by design (SEV API, LAUNCH_MEASURE; attestation reports)."""
PIECE_BYTES = 16
"""Keys are looked for block by block: half of an XTS key is as bad as all of it."""


@dataclass
class KeyHunt:
    """Keys by what they are for. A purpose that nobody named public is a secret."""

    keys: dict[str, set[bytes]] = field(default_factory=dict)

    def listen(self, monkeypatch: pytest.MonkeyPatch) -> KeyHunt:
        """Note everything that a board draws from now on: its chips' keys are made of nothing else."""
        build = Board.__init__

        def built(board: Board, name: str, *arguments: Any, **named: Any) -> None:
            (random,) = [one for one in (*arguments, *named.values()) if isinstance(one, CounterRandom)]
            drawing = _Listening(random, self)
            build(
                board,
                name,
                *[drawing if one is random else one for one in arguments],
                **{key: drawing if one is random else one for key, one in named.items()},
            )

        monkeypatch.setattr(Board, "__init__", built)
        return self

    def note(self, purpose: str, octets: bytes) -> None:
        """A board drew these."""
        if purpose not in PUBLIC:
            blocks = range(0, len(octets) - PIECE_BYTES + 1, PIECE_BYTES)
            self.keys.setdefault(purpose, set()).update(octets[at : at + PIECE_BYTES] for at in blocks)

    def found_in(self, octets: bytes) -> set[str]:
        """Purposes of the keys that stand in some bytes, in any spelling."""
        folded = octets.lower()
        return {
            purpose
            for purpose, keys in self.keys.items()
            if any(raw in octets for key in keys for raw in _raw(key))
            or any(text in folded for key in keys for text in _spelled(key))
        }

    def found_among(self, values: Iterable[bytes | str | int]) -> set[str]:
        """The same for many values."""
        return self.found_in(b"\xff\0".join(_octets(value) for value in values))


class _Listening:
    """A board's source of random numbers, overheard."""

    def __init__(self, random: CounterRandom, hunt: KeyHunt) -> None:
        self._random = random
        self._hunt = hunt

    def octets(self, name: str, purpose: str, counter: int, length: int) -> bytes:
        octets = self._random.octets(name, purpose, counter, length)
        self._hunt.note(purpose, octets)
        return octets


def _raw(key: bytes) -> tuple[bytes, ...]:
    return key, key[::-1]


def _spelled(key: bytes) -> tuple[bytes, ...]:
    """In lower case: what they are compared with is folded too."""
    numbers = (int.from_bytes(key, "little"), int.from_bytes(key, "big"))
    return (
        key.hex().encode(),
        key[::-1].hex().encode(),
        key.hex(" ").encode(),
        key.hex(":").encode(),
        base64.b64encode(key)[:20].lower(),
        *[str(number).encode() for number in numbers],
    )


def _octets(value: bytes | str | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
