"""A guest owner for tests: its DH key, a session, and the buffers that a host lays for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from toy_machine import FIRMWARE, PAGE, Machine, returning

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate, sev_session
from psp.commands import LegacyCommand
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_session import Session, TransportKeys

GODH, BLOB = 0x70_0000, 0x70_1000
EXPORT = 0x72_0000
TARGET_PDH, TARGET_CHAIN, AMD_CHAIN = 0x74_0000, 0x74_1000, 0x74_4000
"""Where a host lays the certificates of a platform that a guest is to go to."""
OWNER_KEY = elliptic.private_key(hashlib.shake_128(b"owner").digest(56))
KEYS = TransportKeys(bytes(range(16)), bytes(range(16, 32)))


def exported(machine: Machine) -> tuple[bytes, bytes]:
    """PDH_CERT_EXPORT's two buffers."""
    for spa in range(EXPORT, EXPORT + 3 * PAGE, PAGE):
        machine.bus.rmp_set(spa, FIRMWARE)
    export = buffers.PdhCertExport(EXPORT, 0x824, EXPORT + PAGE, 3 * 0x824)
    assert returning(machine, LegacyCommand.PDH_CERT_EXPORT, export.pack())[0] == 0
    return machine.bus.read(EXPORT, 0x824), machine.bus.read(EXPORT + PAGE, 3 * 0x824)


def lay_chain(machine: Machine, target: tuple[bytes, bytes], amd: bytes = b"") -> None:
    """What SEND_START reads: PDH and chain as exported, and AMD's certificates."""
    for spa, data in ((TARGET_PDH, target[0]), (TARGET_CHAIN, target[1]), (AMD_CHAIN, amd)):
        machine.bus.write(spa, data)


@dataclass
class Owner:
    """What the owner sends to the host."""

    machine: Machine
    policy: int = 1
    keys: TransportKeys = KEYS
    certificate: SevCertificate = field(init=False)
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        pdh = sev_certificate.parse(exported(self.machine)[0], KeyUsage.PDH)
        z = elliptic.shared_secret(OWNER_KEY, sev_certificate.public_key(pdh))
        self.certificate = sev_certificate.unsigned(OWNER_KEY.public_key(), KeyUsage.PDH, (1, 55))
        self.session = sev_session.seal(z, self.policy, self.keys, b"n" * 16, b"i" * 16)

    def start(self, policy: int | None = None) -> buffers.LaunchStart:
        """Lay certificate and session; the buffer of LAUNCH_START."""
        self.machine.bus.write(GODH, self.certificate.pack())
        self.machine.bus.write(BLOB, self.session.pack())
        return buffers.LaunchStart(
            0, self.policy if policy is None else policy, GODH, SevCertificate.SIZE, BLOB, Session.SIZE
        )
