"""`sevfleet bench tio` moves real records."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.bench import tio
from tio.ide import Direction, SubStream
from tio.ide.keys import SubStreamKey


def test_its_ends_carry_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tio, "MOVED_BYTES", 1 << 16)
    monkeypatch.setattr(tio, "_ROUNDS", 1)
    figures = list(tio.run())
    assert [one.unit for one in figures] == ["byte/s", "byte/s", "ratio"]
    assert all(one.value > 0 for one in figures)


def test_a_link_whose_ends_have_other_keys_moves_nothing() -> None:
    sender, receiver = tio.stream_ends()
    other = SubStreamKey(AESGCM(bytes(32)), running=True)
    receiver._keys[0, Direction.RX, SubStream.PR] = other
    with pytest.raises(AssertionError):
        tio.over_the_link(sender, receiver, bytes(4096))
