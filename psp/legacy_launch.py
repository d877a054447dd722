"""LAUNCH_* and ATTESTATION of the SEV interface (SEV API, chapter 6.2 to 6.7).

The order of checks inside a command is not published; here it is state,
lengths, addresses, activity, then what needs keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.host_memory import HostMemory
from psp.installed_firmware import InstalledFirmware
from psp.launch_digest import launch_measure
from psp.legacy_guest import LegacyGuest, LegacyGuestState, ShortBuffer, guest_in_state
from psp.platform_keys import PlatformKeys
from psp.policy import LegacyPolicy, PlatformFacts, check_legacy_policy
from psp.secret_packet import BLOCK_BYTES, COMPRESSED, MOST_BYTES, PacketHeader, secret_mac
from psp.sev_certificate import CertificateError, KeyAlgorithm, KeyUsage, SevCertificate
from psp.sev_session import KEY_BYTES, NONCE_BYTES, Session, SessionError, TransportKeys, counter_mode, open_session
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, SystemBus

_AT_ONCE_BYTES = LARGE_PAGE_BYTES


class LegacyLaunch:
    """Handlers of the launch commands; ``guests`` is shared with the rest of the firmware."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        random: Callable[[str, int], bytes],
        firmware: InstalledFirmware,
        keys: PlatformKeys,
        guests: dict[int, LegacyGuest],
    ) -> None:
        self._bus = bus
        self._memory = memory
        self._random = random
        self._firmware = firmware
        self._keys = keys
        self._guests = guests
        self._last_handle = 0

    def start(
        self,
        start: buffers.LaunchStart,
        *,
        es_enabled: bool,
        state: LegacyGuestState = LegacyGuestState.LUPDATE,
    ) -> buffers.LaunchStart:
        """LAUNCH_START, and RECEIVE_START; without a DH certificate no owner can verify anything later."""
        shared = self._shared_key(start) if start.handle else b""
        api, smt = self._firmware.current.version[:2], self._bus.core_configuration().smt_enabled
        facts = PlatformFacts(api, smt, es_enabled=es_enabled)
        check_legacy_policy(start.policy, facts)
        if len(self._guests) >= self._bus.max_asid:
            raise PspError(Status.RESOURCE_LIMIT)
        transport = self._session(start) if start.dh_certificate_address else None
        if transport is None:
            transport = TransportKeys(self._random("TEK", KEY_BYTES), self._random("TIK", KEY_BYTES))
        self._last_handle += 1
        handle = self._last_handle
        key = shared or self._random("memory key", self._bus.memory_key_bytes)
        self._guests[handle] = LegacyGuest(handle, start.policy, key, transport, state)
        return replace(start, handle=handle)

    def _shared_key(self, start: buffers.LaunchStart) -> bytes:
        """The named guest's memory key, where neither forbids it; that policies must be equal is the laboratory's."""
        other = self._guests.get(start.handle)
        if other is None:
            raise PspError(Status.INVALID_GUEST)
        if other.policy != start.policy or start.policy & LegacyPolicy.NOKS:
            raise PspError(Status.POLICY_FAILURE)
        return other.key

    def _session(self, start: buffers.LaunchStart) -> TransportKeys:
        """TEK and TIK out of the owner's session. A MAC that does not fit is BAD_MEASUREMENT, as far as is known."""
        if start.dh_certificate_length != SevCertificate.SIZE or start.session_length != Session.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        certificate = self._memory.read(start.dh_certificate_address, SevCertificate.SIZE)
        session = Session.parse(self._memory.read(start.session_address, Session.SIZE))
        try:
            theirs = sev_certificate.parse(certificate, KeyUsage.PDH, checks_point=self._keys.checks_points)
            z = self._keys.agreed(theirs)
        except CertificateError:
            raise PspError(Status.INVALID_CERTIFICATE) from None
        try:
            return open_session(z, start.policy, session)
        except SessionError:
            raise PspError(Status.BAD_MEASUREMENT) from None

    def update_data(self, update: buffers.LaunchUpdateData) -> None:
        """LAUNCH_UPDATE_DATA."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.LAUNCH_UPDATE_DATA)
        if update.length == 0 or update.length % BLOCK_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if update.address % BLOCK_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        self._measure_and_encrypt(guest, update.address, update.length)

    def update_vmsa(self, update: buffers.LaunchUpdateVmsa) -> None:
        """LAUNCH_UPDATE_VMSA. What a guest without ES gets is not published; here it is POLICY_FAILURE."""
        guest = guest_in_state(self._guests, update.handle, LegacyCommand.LAUNCH_UPDATE_VMSA)
        if not guest.policy & LegacyPolicy.ES:
            raise PspError(Status.POLICY_FAILURE)
        if update.length != PAGE_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if update.address % PAGE_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        self._measure_and_encrypt(guest, update.address, update.length)
        self._bus.seal_save_area(update.address, guest.asid)

    def _measure_and_encrypt(self, guest: LegacyGuest, address: int, length: int) -> None:
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_writable(address, length)
        end = address + length
        for spa in range(address, end, _AT_ONCE_BYTES):
            # The host names up to 4 GiB; firmware never holds more than a piece of it.
            data = self._bus.read(spa, min(_AT_ONCE_BYTES, end - spa))
            guest.digest.update(data)
            self._bus.encrypt_in_place(spa, len(data), guest.asid)

    def measure(self, measure: buffers.LaunchMeasure) -> buffers.LaunchMeasure:
        """LAUNCH_MEASURE."""
        guest = guest_in_state(self._guests, measure.handle, LegacyCommand.LAUNCH_MEASURE)
        needed = replace(measure, length=buffers.MEASUREMENT_BYTES)
        if measure.length < buffers.MEASUREMENT_BYTES:
            raise ShortBuffer(needed)
        self._memory.check_writable(measure.address, buffers.MEASUREMENT_BYTES)
        nonce = self._random("measurement nonce", NONCE_BYTES)
        api = self._firmware.current.version
        guest.measure = launch_measure(guest.transport.tik, api, guest.policy, guest.digest.value, nonce)
        self._memory.write(measure.address, guest.measure + nonce)
        guest.state = LegacyGuestState.LSECRET
        return needed

    def secret(self, secret: buffers.LaunchSecret) -> None:
        """LAUNCH_SECRET: what the owner packed is decrypted into the guest's memory."""
        guest = guest_in_state(self._guests, secret.handle, LegacyCommand.LAUNCH_SECRET)
        if secret.header_length != PacketHeader.SIZE or secret.transport_length != secret.guest_length:
            raise PspError(Status.INVALID_LENGTH)
        if not 0 < secret.guest_length <= MOST_BYTES or secret.guest_length % BLOCK_BYTES:
            raise PspError(Status.INVALID_LENGTH)
        if secret.guest_address % BLOCK_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        header = PacketHeader.parse(self._memory.read(secret.header_address, PacketHeader.SIZE))
        ciphertext = self._memory.read(secret.transport_address, secret.transport_length)
        self._memory.check_writable(secret.guest_address, secret.guest_length)
        if header.flags:
            # The compression is not published.
            raise PspError(Status.INVALID_PARAM if header.flags & ~COMPRESSED else Status.UNSUPPORTED)
        keys = guest.transport
        api = self._firmware.current.version[:2]
        mac = secret_mac(keys.tik, header, secret.guest_length, ciphertext, guest.measure, api)
        if not hmac.compare_digest(mac, header.mac):
            raise PspError(Status.BAD_MEASUREMENT)
        self._bus.write_guest(secret.guest_address, counter_mode(keys.tek, header.iv, ciphertext), guest.asid)

    def finish(self, named: buffers.Handle) -> None:
        """LAUNCH_FINISH."""
        guest = guest_in_state(self._guests, named.handle, LegacyCommand.LAUNCH_FINISH)
        guest.state = LegacyGuestState.RUNNING

    def attestation(self, asked: buffers.Attestation) -> buffers.Attestation:
        """ATTESTATION: digest and policy, signed by the PEK as sev-tool verifies it."""
        guest = guest_in_state(self._guests, asked.handle, LegacyCommand.ATTESTATION)
        needed = replace(asked, length=buffers.AttestationReport.SIZE)
        if asked.length < needed.length:
            raise ShortBuffer(needed)
        self._memory.check_writable(asked.address, needed.length)
        report = buffers.AttestationReport(asked.mnonce, guest.digest.value, guest.policy)
        algorithm = KeyAlgorithm.ECDSA_SHA256
        signed = report.pack()[: buffers.ATTESTATION_SIGNED_BYTES]
        signature = elliptic.sign(self._keys.pek_key, signed, sev_certificate.ECDSA_HASHES[algorithm])
        report = replace(
            report, signature_usage=KeyUsage.PEK, signature_algorithm=algorithm, signature=signature[:144]
        )
        self._memory.write(asked.address, report.pack())
        return needed
