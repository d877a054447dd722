"""How fast a device proves itself, and that its responder answers whatever it is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise
from statistics import median
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.errors import ToolError
from cluster.figure import Figure
from node.counter_random import CounterRandom
from tio.card import Card
from tio.device_identity import CardKind
from tio.loose_device import LooseDevice
from tio.spdm import (
    PCI_DOE,
    SEV_TIO_OFFER,
    Packet,
    Requester,
    RequesterSettings,
    Responder,
    ResponderSettings,
    SummaryType,
    TrustAnchors,
)
from tio.spdm.codes import Request, Response
from tio.spdm.session import Session
from tio.steps import carry

T = TypeVar("T")
PROOFS = 60
MUTATED = 1_000_000
TARGET_MULTIPLE = 3.0
_PER_PLACE = 500
_SEED = 7
_CURVE, _SCHEME = ec.SECP384R1(), ec.ECDSA(hashes.SHA384())
_DETERMINISTIC = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
_SIGNATURES = 3
"""Challenge, measurements and key exchange: the device signs each, the requester checks it."""
_CODES = frozenset(Response)


def figures() -> Iterator[Figure]:
    """A full attestation against its bare cryptography, then mutated messages."""
    line, bare = DeviceInProcess(), BareCryptography()
    line.attest()
    bare.run()
    whole, alone = [], []
    for _ in range(PROOFS):
        alone.append(_cpu_s(bare.run))
        whole.append(_cpu_s(line.attest))
    multiple = median([one / other for one, other in zip(whole, alone, strict=True)])
    name = "its signatures and key agreements alone"
    yield Figure("SPDM attestation, both ends", median(whole), "s", median(alone), name)
    yield Figure("SPDM attestation, multiple of its cryptography", multiple, "ratio", TARGET_MULTIPLE, "the target")
    begin = time.process_time()
    answered = send_mutated(MUTATED)
    yield Figure("mutated SPDM messages, each answered", answered, "messages")
    yield Figure("mutated SPDM messages", answered / (time.process_time() - begin), "messages/s")


class DeviceInProcess:
    """A GPU and a requester that pins its root."""

    def __init__(self) -> None:
        self._draws = 0
        self._card = Card(
            CardKind.GPU, LooseDevice(), self._random, settings=ResponderSettings(offer=SEV_TIO_OFFER), programmed=True
        )
        self.requester = self._requester()
        self.responder = self.fresh_responder()
        self.asked: list[Packet] = []

    def attest(self) -> Session:
        """Certificates, challenge, all measurements with a signature, key exchange and FINISH, from nothing."""
        self.responder = self.fresh_responder()
        one = self.requester = self._requester()
        self.asked.clear()
        self.do(one.connect())
        self.do(one.digests())
        self.do(one.certificates())
        self.do(one.challenge(summary=SummaryType.ALL))
        self.do(one.measurements(slot=0))
        return self.do(one.open_session())

    def fresh_responder(self) -> Responder:
        """The device's responder after a reset."""
        return self._card.responder(PCI_DOE)

    def do(self, steps: Generator[Packet, Packet, T]) -> T:
        """Carry packets as the mailbox does, in data objects."""
        return carry(steps, self._carried)

    def _carried(self, packet: Packet) -> Packet:
        self.asked.append(packet)
        over = PCI_DOE.unwrap(PCI_DOE.wrap(packet))
        return PCI_DOE.unwrap(PCI_DOE.wrap(self.responder.answer(over)))

    def _requester(self) -> Requester:
        anchors = TrustAnchors((self._card.identity.root,))
        return Requester(RequesterSettings(offer=SEV_TIO_OFFER, anchors=anchors), PCI_DOE, self._random)

    def _random(self, count: int) -> bytes:
        self._draws += 1
        return CounterRandom(_SEED).octets("bench", "device", self._draws, count)


class BareCryptography:
    """What an attestation signs, checks and agrees on, with nothing around it."""

    def __init__(self) -> None:
        line = DeviceInProcess()
        line.attest()
        chain = [x509.load_der_x509_certificate(one) for one in line.requester.chains[0].certificates]
        self._links = [(_public(above), below) for above, below in pairwise(chain)]
        self._key = ec.derive_private_key(_SEED, _CURVE)

    def run(self) -> None:
        """Once."""
        for key, below in self._links:
            key.verify(below.signature, below.tbs_certificate_bytes, _SCHEME)
        for number in range(_SIGNATURES):
            message = bytes((number,)) * 148
            self._key.public_key().verify(self._key.sign(message, _DETERMINISTIC), message, _SCHEME)
        ours, theirs = (ec.derive_private_key((1 << 380) + side, _CURVE) for side in range(2))
        if ours.exchange(ec.ECDH(), theirs.public_key()) != theirs.exchange(ec.ECDH(), ours.public_key()):
            raise ToolError("bench tio: expected one secret of both sides")


def send_mutated(count: int) -> int:
    """Almost right messages, at every place of an attestation and inside of its session; how many were answered.

    Raises ToolError for an answer that is none.
    """
    line, draws, done = DeviceInProcess(), _Draws(), 0
    line.attest()
    recorded = list(line.asked)
    plain = [packet for packet in recorded if not packet.secured]
    while done < count:
        for place, packet in enumerate(plain):
            responder = line.fresh_responder()
            for before in plain[:place]:
                responder.answer(before)
            for _ in range(_PER_PLACE):
                _check(responder.answer(Packet(draws.mutated(packet.payload), secured=draws.byte() < 8)))
            done += _PER_PLACE
        done += _inside(line, draws)
    return done


_INSIDE = [
    bytes((0, code, 1, 0)) + bytes(tail)
    for code, tail in (
        (Request.HEARTBEAT, 0),
        (Request.KEY_UPDATE, 0),
        (Request.GET_DIGESTS, 0),
        (Request.GET_CERTIFICATE, 4),
        (Request.GET_MEASUREMENTS, 41),
        (Request.VENDOR_DEFINED, 12),
        (Request.END_SESSION, 0),
    )
]


def _inside(line: DeviceInProcess, draws: _Draws) -> int:
    """Mutated messages that their session lets in, as a requester that is the attacker sends them."""
    session = line.attest()
    for _ in range(_PER_PLACE):
        message = bytearray(_INSIDE[draws.byte() % len(_INSIDE)])
        message[0] = line.requester.version
        sealed = session.requests.seal(session.session_id, draws.mutated(bytes(message)))
        _check(line.responder.answer(Packet(sealed, secured=True)))
        theirs = line.responder.connection.sessions.get(session.session_id)
        if theirs is None or theirs.awaits_new_key:
            session = line.attest()
    return _PER_PLACE


def _check(answer: Packet) -> None:
    if not answer.secured and answer.payload[1] not in _CODES:
        raise ToolError(f"bench tio: expected an answer of SPDM, found {answer.payload[:4].hex()}")


class _Draws:
    """Bytes by a counter, a kilobyte at a time."""

    def __init__(self) -> None:
        self._random, self._block, self._at, self._blocks = CounterRandom(_SEED), b"", 0, 0

    def byte(self) -> int:
        """The next one."""
        if self._at == len(self._block):
            self._blocks += 1
            self._block, self._at = self._random.octets("bench", "mutations", self._blocks, 1024), 0
        self._at += 1
        return self._block[self._at - 1]

    def mutated(self, message: bytes) -> bytes:
        """The message with one to four changes: other bytes, flipped bits, bytes too few or too many."""
        data = bytearray(message)
        for _ in range(1 + self.byte() % 4):
            at = (self.byte() << 8 | self.byte()) % (len(data) + 1)
            kind = self.byte()
            if kind < 32:
                del data[at:]
            elif kind < 64:
                data[at:at] = bytes([self.byte() for _ in range(self.byte() % 9)])
            elif at < len(data):
                data[at] = self.byte() if kind < 160 else data[at] ^ 1 << kind % 8
        return bytes(data)


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ToolError("bench tio: expected a chain of P-384")
    return key


def _cpu_s(act: Callable[[], object]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin
