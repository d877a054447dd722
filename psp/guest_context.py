"""What SNP firmware remembers of one guest: the bytes of its Context page, before they are encrypted.

AMD publishes no layout. Two places are known from attacks (BadRAM, RMPocalypse): the
policy's DEBUG bit lies near 0x1FF, so that one changed byte of ciphertext there turns
debugging on in about half of the tries, and the launch digest at 0x460. The rest is the
laboratory's, by one rule: a block of 16 bytes that holds a secret holds nothing that
the host chooses, or the host could build a dictionary of ciphertexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from psp.byte_layout import ByteLayout, at, secret_at

BLOCK_BYTES = 16
"""What is encrypted at once."""
MEMORY_KEY_BYTES = 64
"""Room for the longest key there is; shorter ones are followed by zeros."""
VMPCK_BYTES = 32
VMPCKS = 4
OEK_BYTES = 32
VMRK_BYTES = 32
REPORT_ID_BYTES = 32
DIGEST_BYTES = 48
NO_MIGRATION_AGENT = b"\xff" * REPORT_ID_BYTES
"""REPORT_ID_MA of a guest without one."""
MESSAGE_COUNTS_OFFSET, _COUNT_BYTES = 0x110, 8
POLICY_OFFSET = 0x1F8
MEASUREMENT_OFFSET = 0x460
VCEK_DISABLED = 1 << 0
"""Flag of a guest whose reports and keys rest on a VLEK alone."""
IMI_EN = 1 << 1
"""Flag of a guest that was launched with an initial migration image, and has not taken another's place yet."""
MEASUREMENT_BYTES = 64
"""The digest and what belongs to it: what is copied to forge a measurement."""


class SnpGuestState(IntEnum):
    """SNP_GUEST_STATUS.STATE."""

    INIT = 0
    LAUNCH = 1
    RUNNING = 2


@dataclass(frozen=True, slots=True)
class GuestContext(ByteLayout):
    """A Context page. A state that is none of ``SnpGuestState`` is that of a page without a context."""

    SIZE: ClassVar[int] = 0x1000
    state: int = at(0x000, 4, SnpGuestState.INIT)
    asid: int = at(0x004, 4)
    flags: int = at(0x008, 8)
    gosvw: bytes = at(0x010, 16, bytes(16))
    host_data: bytes = at(0x020, 32, bytes(32))
    family_id: bytes = at(0x040, 16, bytes(16))
    image_id: bytes = at(0x050, 16, bytes(16))
    guest_svn: int = at(0x060, 4)
    id_key_digest: bytes = at(0x070, DIGEST_BYTES, bytes(DIGEST_BYTES))
    author_key_digest: bytes = at(0x0A0, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_id: bytes = at(0x0D0, REPORT_ID_BYTES, bytes(REPORT_ID_BYTES))
    report_id_ma: bytes = at(0x0F0, REPORT_ID_BYTES, bytes(REPORT_ID_BYTES))
    message_count_0: int = at(MESSAGE_COUNTS_OFFSET, _COUNT_BYTES)
    message_count_1: int = at(MESSAGE_COUNTS_OFFSET + _COUNT_BYTES, _COUNT_BYTES)
    message_count_2: int = at(MESSAGE_COUNTS_OFFSET + 2 * _COUNT_BYTES, _COUNT_BYTES)
    message_count_3: int = at(MESSAGE_COUNTS_OFFSET + 3 * _COUNT_BYTES, _COUNT_BYTES)
    oek_iv_count: int = at(0x130, 8)
    root_mdata: bytes = at(0x140, 64, bytes(64))
    tsc_scale: int = at(0x180, 8)
    """GUEST_TSC_SCALE of a guest with Secure TSC; 0 without."""
    tsc_offset: int = at(0x188, 8)
    launch_mitigations: int = at(0x190, 8)
    ma_gctx: int = at(0x198, 8)
    """Where its migration agent's context lies; 0 without."""
    policy: int = at(POLICY_OFFSET, 8)
    memory_key: bytes = secret_at(0x200, MEMORY_KEY_BYTES)
    vmpcks: bytes = secret_at(0x240, VMPCKS * VMPCK_BYTES)
    oek: bytes = secret_at(0x2C0, OEK_BYTES)
    vmrk: bytes = secret_at(0x2E0, VMRK_BYTES)
    """Random, of a guest with a migration agent what that gave; zeros before."""
    imd: bytes = at(0x300, DIGEST_BYTES, bytes(DIGEST_BYTES))
    """The digest of the pages of its initial migration image."""
    digest: bytes = at(MEASUREMENT_OFFSET, DIGEST_BYTES, bytes(DIGEST_BYTES))
    launch_tcb: int = at(MEASUREMENT_OFFSET + DIGEST_BYTES, 8)

    def packed_with_digest(self, digest: bytes) -> bytes:
        """The bytes of the same context with another launch digest."""
        page, end = self.pack(), MEASUREMENT_OFFSET + DIGEST_BYTES
        return page[:MEASUREMENT_OFFSET] + digest + page[end:]

    def vmpck(self, vmpl: int) -> bytes:
        """The message key of a VMPL."""
        return self.vmpcks[VMPCK_BYTES * vmpl : VMPCK_BYTES * (vmpl + 1)]

    @property
    def message_counts(self) -> tuple[int, ...]:
        """The number of the last message under each VMPCK."""
        return self.message_count_0, self.message_count_1, self.message_count_2, self.message_count_3


def counted(page: bytes, vmpl: int, count: int) -> bytes:
    """A context's bytes after a message under the key of a VMPL. A number never goes back.

    Nothing else of the page has changed, and it is written with every message.
    """
    at = MESSAGE_COUNTS_OFFSET + _COUNT_BYTES * vmpl
    end = at + _COUNT_BYTES
    highest = max(count, int.from_bytes(page[at:end], "little"))
    return page[:at] + highest.to_bytes(_COUNT_BYTES, "little") + page[end:]


SECRETS = frozenset({"memory_key", "vmpcks", "oek", "vmrk"})
HOST_CHOSEN = frozenset({
    "state", "asid", "flags", "gosvw", "host_data", "family_id", "image_id", "guest_svn", "id_key_digest",
    "author_key_digest",
    "message_count_0", "message_count_1", "message_count_2", "message_count_3", "oek_iv_count", "root_mdata",
    "tsc_scale", "tsc_offset", "launch_mitigations", "ma_gctx", "imd", "policy", "digest", "launch_tcb",
})  # fmt: skip
"""Fields that follow from what a host lays down or how often it asks. The rest is random and no secret."""
