"""What the RMP answers: codes of its instructions, and the faults of refused accesses with their error bits."""

from __future__ import annotations

from enum import IntEnum

ERROR_PRESENT = 1 << 0
ERROR_WRITE = 1 << 1
ERROR_USER = 1 << 2
ERROR_RESERVED = 1 << 3
ERROR_FETCH = 1 << 4
ERROR_RMP = 1 << 31
ERROR_FINAL = 1 << 32
ERROR_WALK = 1 << 33
ERROR_ENC = 1 << 34
ERROR_SIZEM = 1 << 35
ERROR_VMPL = 1 << 36
"""Bits of EXITINFO1 of a nested page fault (APM volume 2, 15.36.10).

A host #PF has present, write and RMP only: 0x80000003, as Linux logs it. A nested
access always counts as one of a user (15.25.6). FINAL is the guest's own access,
WALK one of its page walk; ENC says that the access was private.
"""


class RmpCode(IntEnum):
    """What the RMP instructions leave in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_OVERLAP = 4
    FAIL_SIZEMISMATCH = 6
    FAIL_NOT_LARGE = 7
    """PSMASH on an entry that is not an assigned 2 MiB page; seen in logs of real hosts."""


class PageOutcome(IntEnum):
    """What happened to one page of a range, beside the values of ``RmpCode``."""

    NPF = 0x80
    """#NPF with RMP and ENC: not this guest's page at this address."""
    NPF_SIZEM = 0x81
    """#NPF with SIZEM too: 4 KiB asked of a 2 MiB entry."""
    UNCHANGED = 0xFF
    """Success with CF = 1: the page was so already. The number is Linux's and EDK2's."""


class RmpFault(Exception):
    """The RMP refused an access: the fault's error bits, and a guest's address where it is known."""

    def __init__(self, spa: int, error: int, gpa: int | None = None) -> None:
        super().__init__(f"RMP refuses SPA {spa:#x}, error {error:#x}")
        self.spa = spa
        self.error = error
        self.gpa = gpa


class NotValidated(Exception):
    """#VC 404 in the guest: the page is assigned to it but not validated."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"GPA {gpa:#x} is not validated")
        self.gpa = gpa


class ProtectionFault(Exception):
    """#GP: this privilege level may not execute the instruction."""
