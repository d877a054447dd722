"""Operations that an SVSM has use for; any guest may execute them. They are handed on by ``node.operations``."""

from __future__ import annotations

from dataclasses import dataclass

from node.boot_phases import BOOT_WORK

GUEST_WORK = BOOT_WORK | {
    "svsm.vtpm_read_ns", "svsm.vtpm_extend_ns", "disk.crypt_request_ns", "disk.crypt_block_ns",
    "attest.verify_chain_ns", "attest.verify_report_ns", "gpu.seal_ns_per_kib",
    "core.vc_ns",
}  # fmt: skip
"""Rows of the cost table that a guest's code can spend."""


@dataclass(frozen=True, slots=True)
class Clear:
    """Store zeros over a range, as REP STOS does; ``private`` is the C-bit. Answer: None, or a Fault."""

    gpa: int
    length: int
    private: bool = True


@dataclass(frozen=True, slots=True)
class GuestWork:
    """Time a guest's code spends outside any other operation: a row of the cost table, so often.

    Answer: None, or #UD.
    """

    cost: str
    times: int = 1
