"""Sessions with DMTF's own programs (spdm-emu of 2026, unmodified), as they were on the wire.

Their requester attested our card, and believed it; our requester attested their responder. Randomness on our side is
the seed's, so the same bytes must come again: what their keys opened and signed is the expectation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

from cluster.commands.device import ask
from cluster.device_server.socket_frames import TRANSPORTS
from tio.card import Card
from tio.device_identity import CardKind
from tio.doe import ObjectType
from tio.loose_device import LooseDevice
from tio.spdm import Packet, Requester, RequesterSettings, ResponderSettings, TrustAnchors, Version
from tio.steps import carry
from tio.tdisp import TdiState

T = TypeVar("T")
RECORDED = Path(__file__).parent / "recorded"
THEIR_ROOT = "599ac5b38ffdf73b55e397f8cfc1c33ebb7bcc5afab2e42a89dded53366b4eec"
"""SHA-256 of ecp384/ca.cert.der among the sample keys of libspdm."""


class Stream:
    """Random bytes that a name tells, as when it was recorded."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed, 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(f"{self._seed} {self._count}".encode()).digest(length)


def exchanges(name: str) -> list[tuple[bytes, bytes]]:
    """What was asked and answered, without the discovery of a mailbox."""
    lines = (RECORDED / f"{name}.txt").read_text().splitlines()
    asked = [bytes.fromhex(line[2:]) for line in lines if line.startswith(">")]
    answered = [bytes.fromhex(line[2:]) for line in lines if line.startswith("<")]
    discovery = bytes((1, 0, ObjectType.DISCOVERY))
    return [pair for pair in zip(asked, answered, strict=True) if "doe" not in name or pair[0][:3] != discovery]


@pytest.mark.parametrize("name", ["pci-doe-1.2", "pci-doe-1.3", "mctp-1.2", "tcp-1.3"])
def test_their_requester_is_answered_as_when_it_believed_the_card(name: str) -> None:
    random = Stream("recorded responder")
    settings = ResponderSettings(heartbeat_s=30)
    card = Card(
        CardKind.GPU, LooseDevice(), random, requester_id=0xBEEF, streams=(0, 1), settings=settings, programmed=True
    )
    _, binding = TRANSPORTS[name.rpartition("-")[0]]
    responder, most, states = card.responder(binding), 0, []
    for number, (asked, answered) in enumerate(exchanges(f"requester-{name}")):
        assert binding.wrap(responder.answer(binding.unwrap(asked))) == answered, number
        most = max(most, len(responder.connection.sessions))
        states.append(card.tdi.state)
    assert most == 1  # its FINISH proved the session's keys
    if name == "pci-doe-1.2":
        # It went on to keys for a stream, and to lock, start and stop an interface.
        assert {TdiState.CONFIG_LOCKED, TdiState.RUN} <= set(states)
        assert states[-1] is TdiState.CONFIG_UNLOCKED


class Replay:
    """A line on which everything was said already."""

    def __init__(self, name: str) -> None:
        self.left = exchanges(f"responder-{name}")
        _, self.binding = TRANSPORTS[name.rpartition("-")[0]]

    def do(self, steps: Generator[Packet, Packet, T]) -> T:
        return carry(steps, self._said)

    def _said(self, packet: Packet) -> Packet:
        asked, answered = self.left.pop(0)
        assert self.binding.wrap(packet) == asked
        return self.binding.unwrap(answered)


@pytest.mark.parametrize("name", ["pci-doe-1.2", "pci-doe-1.3", "mctp-1.3", "tcp-1.2"])
def test_their_responder_is_believed_again(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = Replay(name)
    version = Version.V1_2 if name.endswith("1.2") else Version.V1_3
    settings = RequesterSettings(versions=(version,))
    one = Requester(settings, line.binding, Stream("recorded requester"))
    ask(one, line)
    assert line.left == []
    assert hashlib.sha256(one.chains[0].certificates[0]).hexdigest() == THEIR_ROOT
    assert f"root: SHA-256 {THEIR_ROOT}" in capsys.readouterr().out
    pinned = RequesterSettings(versions=(version,), anchors=TrustAnchors((one.chains[0].certificates[0],)))
    ask(Requester(pinned, line.binding, Stream("recorded requester")), Replay(name))
