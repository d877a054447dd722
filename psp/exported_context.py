"""A guest's context as migration agents carry it: bytes in the clear, between the firmware of two hosts.

AMD's own header calls the layout not final. It has no place for the TCB version of the launch, the mitigations found in
force then and whether the guest may use a VCEK: these stand behind the published fields, where it has reserved bytes,
and the last is one more flag. The memory key stays behind, for the target makes another (SNP ABI, 7.5, as in sev-tool).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from psp.byte_layout import ByteLayout, at, secret_at
from psp.guest_context import (
    DIGEST_BYTES,
    OEK_BYTES,
    REPORT_ID_BYTES,
    VCEK_DISABLED,
    VMPCK_BYTES,
    VMPCKS,
    VMRK_BYTES,
    GuestContext,
)
from psp.id_block import IdBlock
from psp.tcb_version import TCB_BYTES

EXPORTED_BYTES = 0x300
EXPORTED_VERSION = 2
HAS_AUTHOR_KEY, HAS_ID_BLOCK, HAS_NO_VCEK = 1 << 0, 1 << 1, 1 << 2
KNOWN_FLAGS = HAS_AUTHOR_KEY | HAS_ID_BLOCK | HAS_NO_VCEK
MDATA_BYTES = 64
_LAUNCH_TCB = 0x2B0
_NO_DIGEST = bytes(DIGEST_BYTES)


def launched_at_most(exported: bytes, tcb: bytes) -> bytes:
    """An exported context that claims no component of its launch's TCB above ``tcb``; all else as it is."""
    end = _LAUNCH_TCB + TCB_BYTES
    lower = bytes(map(min, exported[_LAUNCH_TCB:end], tcb))
    return exported[:_LAUNCH_TCB] + lower + exported[end:]


@dataclass(frozen=True, slots=True)
class ExportedContext(ByteLayout):
    """Version 2."""

    SIZE: ClassVar[int] = EXPORTED_BYTES
    digest: bytes = at(0x000, DIGEST_BYTES, bytes(DIGEST_BYTES))
    oek: bytes = secret_at(0x030, OEK_BYTES)
    vmpcks: bytes = secret_at(0x050, VMPCKS * VMPCK_BYTES)
    vmrk: bytes = secret_at(0x0D0, VMRK_BYTES)
    host_data: bytes = at(0x0F0, 32, bytes(32))
    id_key_digest: bytes = at(0x110, DIGEST_BYTES, bytes(DIGEST_BYTES))
    author_key_digest: bytes = at(0x140, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_id: bytes = at(0x170, REPORT_ID_BYTES, bytes(REPORT_ID_BYTES))
    imd: bytes = at(0x190, DIGEST_BYTES, bytes(DIGEST_BYTES))
    message_count_0: int = at(0x1C0, 8)
    message_count_1: int = at(0x1C8, 8)
    message_count_2: int = at(0x1D0, 8)
    message_count_3: int = at(0x1D8, 8)
    root_mdata: bytes = at(0x1E0, MDATA_BYTES, bytes(MDATA_BYTES))
    flags: int = at(0x220, 8)
    policy: int = at(0x228, 8)
    state: int = at(0x230, 1)
    oek_iv_count: int = at(0x238, 8)
    id_block: bytes = at(0x240, IdBlock.SIZE, bytes(IdBlock.SIZE))
    gosvw: bytes = at(0x2A0, 16, bytes(16))
    launch_tcb: int = at(_LAUNCH_TCB, TCB_BYTES)
    launch_mitigations: int = at(0x2B8, 8)

    @classmethod
    def of(cls, guest: GuestContext, *, live: bool) -> ExportedContext:
        """A guest's. Of one that runs on meanwhile (``live``) no page that is out can ever be taken in elsewhere."""
        owned, authored = guest.id_key_digest != _NO_DIGEST, guest.author_key_digest != _NO_DIGEST
        block = IdBlock(
            guest.digest, guest.family_id, guest.image_id, guest_svn=guest.guest_svn, policy=guest.policy
        )
        return cls(
            guest.digest, guest.oek, guest.vmpcks, guest.vmrk, guest.host_data, guest.id_key_digest,
            guest.author_key_digest, guest.report_id, guest.imd, guest.message_count_0, guest.message_count_1,
            guest.message_count_2, guest.message_count_3,
            bytes(MDATA_BYTES) if live else guest.root_mdata,
            HAS_AUTHOR_KEY * authored | HAS_ID_BLOCK * owned | HAS_NO_VCEK * bool(guest.flags & VCEK_DISABLED),
            guest.policy, guest.state, guest.oek_iv_count, block.pack() if owned else b"", guest.gosvw,
            guest.launch_tcb, guest.launch_mitigations,
        )  # fmt: skip

    @property
    def is_consistent(self) -> bool:
        """Whether the flags say what there is, and the ID block is of this guest."""
        owned, authored = self.id_key_digest != _NO_DIGEST, self.author_key_digest != _NO_DIGEST
        block = IdBlock.parse(self.id_block)
        whose = (block.digest, block.policy, block.version) == (self.digest, self.policy, IdBlock().version)
        return (
            not self.flags & ~KNOWN_FLAGS
            and bool(self.flags & HAS_AUTHOR_KEY) == authored
            and bool(self.flags & HAS_ID_BLOCK) == owned
            and (whose if owned else not any(self.id_block))
            and (owned or not authored)
        )

    def identity(self, onto: GuestContext) -> GuestContext:
        """A context with all of this guest but where it keeps its pages."""
        block = IdBlock.parse(self.id_block)
        return replace(
            onto,
            digest=self.digest, vmpcks=self.vmpcks, vmrk=self.vmrk, host_data=self.host_data,
            id_key_digest=self.id_key_digest, author_key_digest=self.author_key_digest, imd=self.imd,
            family_id=block.family_id, image_id=block.image_id, guest_svn=block.guest_svn,
            message_count_0=self.message_count_0, message_count_1=self.message_count_1,
            message_count_2=self.message_count_2, message_count_3=self.message_count_3,
            flags=VCEK_DISABLED if self.flags & HAS_NO_VCEK else 0,
            policy=self.policy, state=self.state, gosvw=self.gosvw, launch_tcb=self.launch_tcb,
            launch_mitigations=self.launch_mitigations,
        )  # fmt: skip
