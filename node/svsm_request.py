"""A call as it stands in a save area: the registers that the caller's exit stored there, and the answer's way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node import operations as op
from node.vmsa import VMSA_FIELDS

_NAMES = ("RAX", "RCX", "RDX", "R8", "R9")
AREA_REGISTERS = tuple((VMSA_FIELDS[name].offset, VMSA_FIELDS[name].width) for name in _NAMES)
"""(offset, width) of the registers that carry a call."""


@dataclass(slots=True)
class Request:
    """A call's arguments, which its service changes where the call answers in registers."""

    rax: int
    rcx: int
    rdx: int
    r8: int
    r9: int

    @property
    def protocol(self) -> int:
        """RAX bits 63:32."""
        return self.rax >> 32

    @property
    def call(self) -> int:
        """RAX bits 31:0."""
        return self.rax & 0xFFFF_FFFF


def read_request(answers: Sequence[op.Answer]) -> Request | None:
    """The call in what ``AREA_REGISTERS`` were read as; None where a read failed."""
    found = [int.from_bytes(one, "little") for one in answers if isinstance(one, bytes)]
    return Request(*found) if len(found) == len(_NAMES) else None


def write_answer(area: int, result: int, request: Request) -> tuple[op.Write, ...]:
    """The stores that put a result, and the registers that go with it, into the save area."""
    values = (result, request.rcx, request.rdx, request.r8, request.r9)
    return tuple(
        op.Write(area + at, value.to_bytes(width, "little"))
        for (at, width), value in zip(AREA_REGISTERS, values, strict=True)
    )
