"""The answers of the key distribution service: certificates, made when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus

from cluster.key_server.answer import Answer, said
from cluster.key_server.chip_register import ChipRegister, KnownChip
from cluster.key_server.failures import Lie
from cluster.key_server.gate import Gate
from cluster.key_server.key_urls import Asked, BadUrlError, Kind, UnknownUrlError, parsed
from node.counter_random import CounterRandom
from psp import sev_certificate
from psp.chip_identity import VLEK_WRAPPING, ChipIdentity
from psp.product_line import ProductLine
from psp.product_root import ProductRoot, RootName
from psp.sev_certificate import KeyUsage
from psp.tcb_version import TCB_BYTES
from psp.vlek import provider_hashstick
from psp.x509_profile import EPOCH, pem

_DER, _PEM, _LIST, _BYTES = (
    "application/pkix-cert",
    "application/x-pem-file",
    "application/pkix-crl",
    "application/octet-stream",
)
_MOST_KEPT = 4096
_SECRET_BYTES = 32
_NONCE_BYTES = 12
_YEARS_BACK = 10
_EVERY_VCEK = 0
"""The serial number that all VCEKs bear."""


@dataclass(slots=True)
class KeyService:
    """One service. ``root`` gives the root of a line by its name; ``provider`` is whose VLEKs it knows."""

    chips: ChipRegister
    root: Callable[[str], ProductRoot]
    issued: datetime = EPOCH
    provider: str = "CN=cloud.example"
    provider_secret: bytes = field(default=b"", repr=False)
    gate: Gate = field(default_factory=Gate)
    _made: dict[Asked, tuple[str, bytes]] = field(default_factory=dict, init=False, repr=False)

    def answer(self, target: str, client: str, now_ns: int) -> Answer:
        """To a GET of a target, e.g. ``/vcek/v1/Milan/crl``, by a client at a time."""
        refusal = self.gate.refusal(client, now_ns)
        if refusal is not None:
            return refusal
        delay = self.gate.failures.delay_ns
        try:
            asked = parsed(target)
        except BadUrlError as error:
            return said(HTTPStatus.BAD_REQUEST, str(error), delay)
        except UnknownUrlError as error:
            return said(HTTPStatus.NOT_FOUND, str(error), delay)
        made = self._made.get(asked)
        if made is None:
            made = self._make(asked)
            if made is None:
                return said(HTTPStatus.NOT_FOUND, "chip id: no such chip was made", delay)
            if len(self._made) == _MOST_KEPT:
                del self._made[next(iter(self._made))]
            self._made[asked] = made
        return Answer(HTTPStatus.OK, *made, delay)

    def hashstick(self, chip_id: bytes, tcb: int) -> bytes:
        """The provider's VLEK for a TCB version, sealed for a chip (432 bytes). KeyError for one that was not made.

        Providers get it by a door of their own, which is not modelled.
        """
        chip = self.chips.find(chip_id)
        if chip is None:
            raise KeyError(chip_id)
        nonce = hashlib.sha256(chip_id + tcb.to_bytes(TCB_BYTES, "little")).digest()[:_NONCE_BYTES]
        return provider_hashstick(self.provider_secret, tcb).wrapped(chip.identity.symmetric_key(VLEK_WRAPPING), nonce)

    def _make(self, asked: Asked) -> tuple[str, bytes] | None:
        makers: Mapping[Kind, tuple[str, Callable[[Asked], bytes | None]]] = {
            Kind.VCEK: (_DER, self._vcek),
            Kind.VLEK: (_DER, self._vlek),
            Kind.CEK: (_BYTES, self._cek),
            Kind.VCEK_CHAIN: (_PEM, self._vcek_chain),
            Kind.VLEK_CHAIN: (_PEM, self._vlek_chain),
            Kind.CRL: (_LIST, self._revocation_list),
        }
        content_type, make = makers[asked.kind]
        body = make(asked)
        if body is not None and self.gate.failures.lie is Lie.GARBAGE:
            body = hashlib.shake_128(body).digest(len(body))
        return None if body is None else (content_type, body)

    # One for each kind.

    def _vcek(self, asked: Asked) -> bytes | None:
        line, chip = _line(asked), self._chip(asked)
        if chip is None:
            return None
        identity, tcb = chip.identity, asked.tcb
        if self.gate.failures.lie is Lie.OTHER_CHIP:
            identity = ChipIdentity(line, lambda: hashlib.sha256(b"another chip").digest())
        if self.gate.failures.lie is Lie.OTHER_TCB:
            tcb = 0
        return self._root(line).vcek(identity.vcek_key(tcb).public_key(), identity.chip_id, tcb, self._date)

    def _vlek(self, asked: Asked) -> bytes:
        tcb = 0 if self.gate.failures.lie is Lie.OTHER_TCB else asked.tcb
        key = provider_hashstick(self.provider_secret, tcb).key().public_key()
        return self._root(_line(asked)).vlek(key, self.provider, tcb, self._date)

    def _cek(self, asked: Asked) -> bytes | None:
        chip = self._chip(asked)
        if chip is None:
            return None
        key = chip.identity.cek_key().public_key()
        bare = sev_certificate.unsigned(key, KeyUsage.CEK, chip.product.firmware_api[:2])
        return self._root(chip.identity.line).certified_cek(bare).pack()

    def _vcek_chain(self, asked: Asked) -> bytes:
        return self._chain(_line(asked), RootName.ASK)

    def _vlek_chain(self, asked: Asked) -> bytes:
        return self._chain(_line(asked), RootName.ASVK)

    def _chain(self, line: ProductLine, intermediate: RootName) -> bytes:
        root = self._root(line)
        return "".join(pem(root.certificate(name)) for name in (intermediate, RootName.ARK)).encode()

    def _revocation_list(self, asked: Asked) -> bytes:
        line = _line(asked)
        intermediates = (line.first_serial + 1, line.first_serial + 2)
        revoked = (_EVERY_VCEK, *intermediates) if self.gate.failures.lie is Lie.REVOKED else ()
        return self._root(line).revocation_list(revoked, 1, self._date)

    def _chip(self, asked: Asked) -> KnownChip | None:
        """The chip that was asked about, if it is of the line."""
        chip = self.chips.find(asked.chip_id)
        if chip is None or (asked.line is not None and chip.identity.line != asked.line):
            return None
        return chip

    def _root(self, line: ProductLine) -> ProductRoot:
        root = self.root(line.name)
        if self.gate.failures.lie is Lie.OTHER_ROOT:
            # The VLEKs' key in every place: a real one, of which no client knows that it is not the root's.
            impostor = root.key(RootName.ASVK if line.tcb else RootName.ARK)
            return ProductRoot(line, b"impostor", lambda _seed, _bits: impostor)
        return root

    @property
    def _date(self) -> datetime:
        if self.gate.failures.lie is Lie.EXPIRED:
            return self.issued.replace(year=self.issued.year - _YEARS_BACK, day=min(self.issued.day, 28))
        return self.issued


def provider_secret(provider: str, seed: int) -> bytes:
    """What the service keeps for a cloud provider, in the scenario of a seed."""
    return CounterRandom(seed).octets(provider, "VLEK secret", 0, _SECRET_BYTES)


def _line(asked: Asked) -> ProductLine:
    assert asked.line is not None
    return asked.line
