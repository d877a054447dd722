"""PEK_GEN, PEK_CSR, PEK_CERT_IMPORT, PDH_GEN, PDH_CERT_EXPORT, GET_ID and PLATFORM_RESET (SEV API, chapter 5)."""

from __future__ import annotations

from dataclasses import replace

from psp import command_buffers as buffers
from psp.host_memory import HostMemory
from psp.legacy_guest import ShortBuffer
from psp.nv_storage import NvFile
from psp.platform_keys import AlreadyOwned, PlatformKeys
from psp.sev_certificate import CertificateError, SevCertificate
from psp.status import PspError, Status

CHAIN_BYTES = 3 * SevCertificate.SIZE


class LegacyKeys:
    """Handlers of the commands on the platform's keys."""

    def __init__(self, memory: HostMemory, keys: PlatformKeys, nv: NvFile) -> None:
        self._memory = memory
        self._nv = nv
        self._keys = keys

    def reset(self, _: None) -> None:
        """PLATFORM_RESET: the next INIT makes new keys."""
        self._nv.check()
        self._keys.forget()
        self._nv.save()

    def pek_gen(self, _: None) -> None:
        """PEK_GEN."""
        self._nv.check()
        self._keys.generate_pek()
        self._nv.save()

    def pdh_gen(self, _: None) -> None:
        """PDH_GEN."""
        self._nv.check()
        self._keys.generate_pdh()
        self._nv.save()

    def pek_csr(self, out: buffers.Output) -> buffers.Output:
        """PEK_CSR: the PEK's certificate for an owner to sign."""
        needed = self._room(out, SevCertificate.SIZE)
        self._memory.write(out.address, self._keys.pek_request().pack())
        return needed

    def pek_cert_import(self, named: buffers.PekCertImport) -> None:
        """PEK_CERT_IMPORT."""
        if named.pek_length != SevCertificate.SIZE or named.oca_length != SevCertificate.SIZE:
            raise PspError(Status.INVALID_LENGTH)
        pek, oca = (self._memory.read(spa, SevCertificate.SIZE) for spa in (named.pek_address, named.oca_address))
        self._nv.check()
        try:
            self._keys.take_owner(pek, oca)
        except AlreadyOwned:
            raise PspError(Status.ALREADY_OWNED) from None
        except CertificateError:
            raise PspError(Status.INVALID_CERTIFICATE) from None
        self._nv.save()

    def pdh_cert_export(self, out: buffers.PdhCertExport) -> buffers.PdhCertExport:
        """PDH_CERT_EXPORT: the PDH, and PEK, OCA and CEK behind each other."""
        needed = replace(out, pdh_length=SevCertificate.SIZE, chain_length=CHAIN_BYTES)
        if out.pdh_length < SevCertificate.SIZE or out.chain_length < CHAIN_BYTES:
            raise ShortBuffer(needed)
        self._memory.check_writable(out.pdh_address, SevCertificate.SIZE)
        self._memory.check_writable(out.chain_address, CHAIN_BYTES)
        chain = self._keys.chain()
        self._memory.write(out.pdh_address, chain.pdh.pack())
        self._memory.write(out.chain_address, chain.pack())
        return needed

    def get_id(self, out: buffers.Output) -> buffers.Output:
        """GET_ID of a host with one socket."""
        needed = self._room(out, self._keys.line.chip_id_bytes)
        self._memory.write(out.address, self._keys.chip.chip_id)
        return needed

    def _room(self, out: buffers.Output, length: int) -> buffers.Output:
        """The answer, if the host's buffer holds it."""
        needed = replace(out, length=length)
        if out.length < length:
            raise ShortBuffer(needed)
        self._memory.check_writable(out.address, length)
        return needed
