"""A guest's side of calling its SVSM: a part of a block, to be used with ``yield from``.

The call goes by message 016 of the MSR protocol, or by a GHCB page where one is named. What comes back is
the SVSM's word: a hypervisor that does not run it leaves the call pending, and that is no answer.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.ghcb_msr import GhcbMsrError, RunVmplRequest, RunVmplResult
from node.ghcb_page import GHCB_BYTES, GhcbUntrusted, build_exit, parse_reply
from node.guest_ghcb import response_to
from node.nae_event import NaeEvent
from node.operations import Answer, GuestOperation, Read, VmgExit, Write
from node.program import Registers
from node.svsm_call import CALL_PENDING

_CARRIERS = ("rax", "rcx", "rdx", "r8", "r9")


@dataclass(frozen=True, slots=True)
class SvsmAnswer:
    """What a call came to: a result, and the registers that some calls answer in."""

    result: int
    rcx: int
    rdx: int
    r8: int
    r9: int


class SvsmUntrusted(Exception):
    """The SVSM was not run, or did not take the call: the hypervisor's doing, and no answer."""


SVSM_FIELDS = 0x140
"""Offset in the secrets page of what an SVSM says of itself there: base, size, calling area, version, VMPL."""


def calling_area(
    secrets_gpa: int,
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]:
    """Where the boot processor's calling area is, as the secrets page says; 0 if it cannot be read."""
    (found,) = yield (Read(secrets_gpa + SVSM_FIELDS + 0x10, 8),)
    return int.from_bytes(found, "little") if isinstance(found, bytes) else 0


Calling = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], SvsmAnswer]


def svsm_call(
    registers: Registers,
    caa: int,
    protocol: int,
    call: int,
    rcx: int = 0,
    rdx: int = 0,
    r8: int = 0,
    ghcb: int | None = None,
) -> Calling:
    """Call the SVSM whose calling area for this vCPU is at ``caa``; registers are then as they were.

    Raises SvsmUntrusted.
    """
    kept = [getattr(registers, name) for name in _CARRIERS]
    registers.rax, registers.rcx, registers.rdx, registers.r8 = protocol << 32 | call, rcx, rdx, r8
    if ghcb is None:
        refused = yield from _by_message(caa)
    else:
        refused = yield from _by_page(caa, ghcb)
    found = [getattr(registers, name) for name in _CARRIERS]
    for name, value in zip(_CARRIERS, kept, strict=True):
        setattr(registers, name, value)
    if refused:
        raise SvsmUntrusted(refused)
    return SvsmAnswer(*found)


_Exchange = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], str]


@dataclass(frozen=True, slots=True)
class SvsmBelow:
    """The SVSM of a kernel whose secrets page this is, as a block calls it that runs with these registers."""

    registers: Registers
    secrets_gpa: int

    def call(self, protocol: int, call: int, rcx: int = 0, rdx: int = 0) -> Calling:
        """Raises SvsmUntrusted."""
        caa = yield from calling_area(self.secrets_gpa)
        return (yield from svsm_call(self.registers, caa, protocol, call, rcx, rdx))


def _by_message(caa: int) -> _Exchange:
    request = RunVmplRequest(0)
    at = caa + CALL_PENDING
    wrote, value, pending = yield (Write(at, b"\1"), VmgExit(request.value), Read(at, 1))
    try:
        if response_to(request, value) != RunVmplResult(0):
            return f"run VMPL: {value!r}"
    except GhcbMsrError as error:
        return str(error)
    return _taken(wrote, pending)


def _by_page(caa: int, ghcb: int) -> _Exchange:
    wrote, asked, value, back, pending = yield (
        Write(caa + CALL_PENDING, b"\1"),
        Write(ghcb, build_exit(NaeEvent.RUN_VMPL, 0), private=False),
        VmgExit(ghcb),
        Read(ghcb, GHCB_BYTES, private=False),
        Read(caa + CALL_PENDING, 1),
    )
    if asked is not None or value != ghcb or not isinstance(back, bytes):
        return f"VMGEXIT: {value!r}"
    try:
        parse_reply(back, ())
    except GhcbUntrusted as error:
        return str(error)
    return _taken(wrote, pending)


def _taken(wrote: Answer, pending: Answer) -> str:
    return "" if wrote is None and pending == b"\0" else f"the call is still pending: {pending!r}"
