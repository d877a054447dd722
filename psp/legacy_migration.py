"""SEND_* and RECEIVE_* of the SEV interface: a guest's memory from one platform's key to another's (SEV API).

The two firmwares agree on keys as an owner and a firmware do for a launch. The source believes
whoever shows a chain of certificates that ends in its own AMD root; nothing is fresh in a packet
and none says where it belongs, so a hypervisor may place and repeat them as it likes: SEV
promises no integrity. Statuses and the order of checks are the laboratory's where the sheet names
none: state, policy, lengths, addresses, activity, then what needs keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace

from psp import amd_certificate, sev_chain
from psp import command_buffers as buffers
from psp.amd_certificate import AmdCertificate
from psp.commands import LegacyCommand
from psp.host_memory import HostMemory
from psp.legacy_guest import NO_KEYS, LegacyGuest, LegacyGuestState, ShortBuffer, guest_in_state
from psp.legacy_launch import LegacyLaunch
from psp.platform_keys import PlatformKeys
from psp.policy import LegacyPolicy
from psp.product_root import laboratory_root
from psp.secret_packet import BLOCK_BYTES, COMPRESSED, MOST_BYTES, PacketHeader, PacketKind, packet_mac
from psp.sev_certificate import CertificateError, KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import KEY_BYTES, NONCE_BYTES, Session, TransportKeys, counter_mode, seal
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus

CHAIN_BYTES = 3 * SevCertificate.SIZE
AMD_CERTIFICATES_BYTES = frozenset({2 * 0x340, 2 * 0x640})
"""ASK and ARK behind each other, of 2048 or 4096 bits."""


class LegacyMigration:
    """Handlers of both directions; ``guests`` is shared with the rest of the firmware."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        random: Callable[[str, int], bytes],
        keys: PlatformKeys,
        guests: dict[int, LegacyGuest],
        launch: LegacyLaunch,
    ) -> None:
        self.trusted_ark: Callable[[], AmdCertificate] = lambda: laboratory_root(keys.line).amd_certificate(
            KeyUsage.ARK
        )
        """The root that this firmware was built with."""
        self.other_arks: tuple[AmdCertificate, ...] = ()
        """Roots of other lines that it takes, too. Whether a guest may go to another line of processors if AMD's
        certificates for that are shown is doubtful: the only moves that anybody published were within one."""
        self.checks_target = True
        """Whether SEND_START looks at the target's certificates; False shows what that is good for."""
        self._bus = bus
        self._memory = memory
        self._random = random
        self._keys = keys
        self._guests = guests
        self._launch = launch

    # Out.

    def send_start(self, start: buffers.SendStart) -> buffers.SendStart:
        """SEND_START: new transport keys, sealed for the platform of a PDH."""
        guest = guest_in_state(self._guests, start.handle, LegacyCommand.SEND_START)
        if guest.policy & LegacyPolicy.NOSEND:
            raise PspError(Status.POLICY_FAILURE)
        needed = replace(start, policy=guest.policy, session_length=Session.SIZE)
        if start.session_length < Session.SIZE:
            raise ShortBuffer(needed)
        if start.pdh_length != SevCertificate.SIZE or start.chain_length != CHAIN_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        pdh = self._memory.read(start.pdh_address, SevCertificate.SIZE)
        chain = self._memory.read(start.chain_address, CHAIN_BYTES)
        amd = b""
        if guest.policy & LegacyPolicy.SEV:
            if start.amd_length not in AMD_CERTIFICATES_BYTES:
                raise PspError(Status.INVALID_LENGTH)
            amd = self._memory.read(start.amd_address, start.amd_length)
        self._memory.check_writable(start.session_address, Session.SIZE)
        try:
            target = PlatformChain.parse(pdh, chain, checks_point=self._keys.checks_points)
            if self.checks_target:
                self._check_target(guest.policy, target, amd)
            z = self._keys.agreed(target.pdh)
        except CertificateError:
            raise PspError(Status.INVALID_CERTIFICATE) from None
        keys = TransportKeys(self._random("TEK", KEY_BYTES), self._random("TIK", KEY_BYTES))
        nonce, iv = self._random("session nonce", NONCE_BYTES), self._random("wrap IV", NONCE_BYTES)
        self._memory.write(start.session_address, seal(z, guest.policy, keys, nonce, iv).pack())
        guest.transport = keys
        guest.state = LegacyGuestState.SUPDATE
        return needed

    def _check_target(self, policy: int, target: PlatformChain, amd: bytes) -> None:
        """Raises CertificateError, and PspError(POLICY_FAILURE) for a platform that the policy does not want."""
        sev_chain.check_owned(target)
        if amd:
            ask = amd_certificate.parse(amd[: len(amd) // 2], KeyUsage.ASK)
            ark = amd_certificate.parse(amd[len(amd) // 2 :], KeyUsage.ARK)
            if ark not in (self.trusted_ark(), *self.other_arks):
                raise CertificateError("ARK certificate: expected a root of this firmware's")
            sev_chain.check_chain(target, ark, ask)
        lowest = (policy >> 16 & 0xFF, policy >> 24 & 0xFF)
        if (target.pek.api_major, target.pek.api_minor) < lowest:
            raise PspError(Status.POLICY_FAILURE)
        if policy & LegacyPolicy.DOMAIN and target.oca.public_key != self._keys.oca.public_key:
            raise PspError(Status.POLICY_FAILURE)

    def send_update_data(self, update: buffers.SendUpdate) -> buffers.SendUpdate:
        """SEND_UPDATE_DATA: a piece of the guest's memory as a packet."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.SEND_UPDATE_DATA)
        return self._send(guest, update, PacketKind.DATA)

    def send_update_vmsa(self, update: buffers.SendUpdate) -> buffers.SendUpdate:
        """SEND_UPDATE_VMSA: a save area as a packet."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.SEND_UPDATE_VMSA)
        _check_save_area(guest, update)
        return self._send(guest, update, PacketKind.VMSA)

    def _send(self, guest: LegacyGuest, update: buffers.SendUpdate, kind: PacketKind) -> buffers.SendUpdate:
        _check_guest_range(update)
        needed = replace(update, header_length=PacketHeader.SIZE, transport_length=update.guest_length)
        if update.header_length < PacketHeader.SIZE or update.transport_length < update.guest_length:
            raise ShortBuffer(needed)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_present(update.guest_address, update.guest_length)
        self._memory.check_writable(update.header_address, PacketHeader.SIZE)
        self._memory.check_writable(update.transport_address, update.guest_length)
        if kind is PacketKind.VMSA and not self._bus.save_area_is_sealed(update.guest_address, guest.asid):
            # What the host has damaged here would come out there with an integrity value of its own.
            raise PspError(Status.BAD_MEASUREMENT)
        plain = self._bus.read_guest(update.guest_address, update.guest_length, guest.asid)
        header = PacketHeader(iv=self._random("packet IV", NONCE_BYTES))
        ciphertext = counter_mode(guest.transport.tek, header.iv, plain)
        mac = packet_mac(guest.transport.tik, kind, header, len(plain), ciphertext)
        self._memory.write(update.header_address, replace(header, mac=mac).pack())
        self._memory.write(update.transport_address, ciphertext)
        return needed

    def send_finish(self, named: buffers.Handle) -> None:
        """SEND_FINISH: nothing but DECOMMISSION is left to the guest here, after DEACTIVATE."""
        self._end(guest_in_state(self._guests, named.handle, LegacyCommand.SEND_FINISH), LegacyGuestState.SENT)

    def send_cancel(self, named: buffers.Handle) -> None:
        """SEND_CANCEL: the guest stays."""
        self._end(guest_in_state(self._guests, named.handle, LegacyCommand.SEND_CANCEL), LegacyGuestState.RUNNING)

    # In.

    def receive_start(self, start: buffers.LaunchStart, *, es_enabled: bool) -> buffers.LaunchStart:
        """RECEIVE_START: a guest with a new memory key, and the transport keys that the source chose."""
        if not start.dh_certificate_address:
            raise PspError(Status.INVALID_ADDRESS)
        return self._launch.start(start, es_enabled=es_enabled, state=LegacyGuestState.RUPDATE)

    def receive_update_data(self, update: buffers.SendUpdate) -> None:
        """RECEIVE_UPDATE_DATA: a packet into the guest's memory, wherever the host says."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.RECEIVE_UPDATE_DATA)
        self._receive(guest, update, PacketKind.DATA)

    def receive_update_vmsa(self, update: buffers.SendUpdate) -> None:
        """RECEIVE_UPDATE_VMSA: a save area, with its integrity value."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.RECEIVE_UPDATE_VMSA)
        _check_save_area(guest, update)
        self._receive(guest, update, PacketKind.VMSA)
        self._bus.seal_save_area(update.guest_address, guest.asid)

    def _receive(self, guest: LegacyGuest, update: buffers.SendUpdate, kind: PacketKind) -> None:
        _check_guest_range(update)
        if update.header_length != PacketHeader.SIZE or update.transport_length != update.guest_length:
            raise PspError(Status.INVALID_LENGTH)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        header = PacketHeader.parse(self._memory.read(update.header_address, PacketHeader.SIZE))
        ciphertext = self._memory.read(update.transport_address, update.transport_length)
        self._memory.check_writable(update.guest_address, update.guest_length)
        if header.flags:
            # The compression is not published.
            raise PspError(Status.INVALID_PARAM if header.flags & ~COMPRESSED else Status.UNSUPPORTED)
        mac = packet_mac(guest.transport.tik, kind, header, update.guest_length, ciphertext)
        if not hmac.compare_digest(mac, header.mac):
            raise PspError(Status.BAD_MEASUREMENT)
        plain = counter_mode(guest.transport.tek, header.iv, ciphertext)
        self._bus.write_guest(update.guest_address, plain, guest.asid)

    def receive_finish(self, named: buffers.Handle) -> None:
        """RECEIVE_FINISH."""
        self._end(guest_in_state(self._guests, named.handle, LegacyCommand.RECEIVE_FINISH), LegacyGuestState.RUNNING)

    def _end(self, guest: LegacyGuest, state: LegacyGuestState) -> None:
        guest.transport = NO_KEYS
        guest.state = state


def _check_save_area(guest: LegacyGuest, update: buffers.SendUpdate) -> None:
    if not guest.policy & LegacyPolicy.ES:
        raise PspError(Status.POLICY_FAILURE)
    if update.guest_length != PAGE_BYTES:
        raise PspError(Status.INVALID_LENGTH)
    if update.guest_address % PAGE_BYTES:
        raise PspError(Status.INVALID_ADDRESS)


def _check_guest_range(update: buffers.SendUpdate) -> None:
    if not 0 < update.guest_length <= MOST_BYTES or update.guest_length % BLOCK_BYTES:
        raise PspError(Status.INVALID_LENGTH)
    if update.guest_address % BLOCK_BYTES:
        raise PspError(Status.INVALID_ADDRESS)
