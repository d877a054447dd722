"""`sevfleet bench tio` moves real records."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.bench import device_proofs, interface_host, tio
from cluster.errors import ToolError
from tio.ide import Direction, SubStream
from tio.ide.keys import SubStreamKey
from tio.spdm import PCI_DOE, Packet, PeerUntrusted, Requester, RequesterSettings, TrustAnchors


def test_its_ends_carry_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tio, "MOVED_BYTES", 1 << 16)
    monkeypatch.setattr(tio, "_ROUNDS", 1)
    for name, value in (("PROOFS", 1), ("MUTATED", 1), ("_PER_PLACE", 4)):
        monkeypatch.setattr(device_proofs, name, value)
    for name, value in (("CARDS", 1), ("FUNCTIONS", 2), ("MACHINES", 3)):
        monkeypatch.setattr(interface_host, name, value)
    figures = list(tio.run())
    units = ["s", "ratio", "messages", "messages/s", *2 * ["s", "byte"], *2 * ["byte/s"], "ratio", *2 * ["byte/s"]]
    assert [one.unit for one in figures] == units
    assert all(one.value > 0 for one in figures)


def test_its_device_is_attested_and_one_with_another_root_is_not() -> None:
    line = device_proofs.DeviceInProcess()
    assert line.attest().exporter
    line._requester = lambda: Requester(RequesterSettings(anchors=TrustAnchors((b"another",))), PCI_DOE, bytes)
    with pytest.raises(PeerUntrusted):
        line.attest()


def test_an_answer_that_is_none_is_named() -> None:
    with pytest.raises(ToolError, match="expected an answer"):
        device_proofs._check(Packet(bytes(4)))


def test_a_link_whose_ends_have_other_keys_moves_nothing() -> None:
    sender, receiver = tio.stream_ends()
    other = SubStreamKey(AESGCM(bytes(32)), running=True)
    receiver._keys[0, Direction.RX, SubStream.PR] = other
    with pytest.raises(AssertionError):
        tio.over_the_link(sender, receiver, bytes(4096))
