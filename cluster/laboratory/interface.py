"""Interfaces that an attack may need and a host may lack; the laboratory looks before it lets the attack begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from cluster.laboratory.hands import Hands
from node.core_msrs import MEM_ENCRYPTION_MODE_EN, Msr
from node.operations import (
    Cpuid,
    Fault,
    FaultKind,
    HostRead,
    HostWrite,
    ReadMsr,
    RmpQuery,
    Runs,
    VmKick,
    Wbinvd,
    Write,
)
from node.vmsa import read_field
from psp.system_bus import PAGE_BYTES
from workloads.attacks.dimm_operations import DimmDump
from workloads.attacks.target import Target
from workloads.attacks.vault import ROUND_RIP

_MARK = b"what is written to find out where it comes to lie, and how".ljust(64, b".")


class Interface(StrEnum):
    """What may be there or not."""

    C_BIT = "C-bit in the host's mappings"
    WAY_PAST_THE_KEY = "access without the C-bit that goes past every key"
    PAGE_VALIDATION = "PVALIDATE"
    VMPLS = "VMPLs"
    VMM_COMMUNICATION = "#VC"
    TRANSPARENT_KEY = "key over all memory, set by firmware"
    LAUNCH_MEASUREMENT = "measurement of the victim's launch"
    ENCRYPTED_REGISTERS = "save area that software cannot read"
    CIPHERTEXT = "ciphertext of a VM's memory where software looks"
    GUEST_KEY = "key of the victim's own, which firmware uses"
    CONTEXT_PAGE = "context of the victim in a page of memory"
    TDISP = "device that firmware locks for the victim"
    PAGE_SWAP = "way to take a page from the victim and give it back"
    PDH_LAUNCH = "launch of the victim by keys that are agreed on with the platform's PDH"


def is_there(interface: Interface, hands: Hands, target: Target) -> bool:
    """Whether a host has an interface, found out by asking the host, or by using it on what nobody will miss."""
    return _LOOKS[interface](hands, target)


def _has_c_bit(hands: Hands, _: Target) -> bool:
    (syscfg,) = hands.act((ReadMsr(0, Msr.SYSCFG),))
    return isinstance(syscfg, int) and bool(syscfg & MEM_ENCRYPTION_MODE_EN)


def _lies_in_clear(hands: Hands, target: Target) -> bool:
    frame = target.spare[0]
    hands.act((HostWrite(frame, _MARK), Wbinvd()))
    (dump,) = hands.act((DimmDump(),))
    assert isinstance(dump, Runs)
    return any(octets[frame - at :].startswith(_MARK) for at, octets in dump.runs if at <= frame < at + len(octets))


def _has_pvalidate(hands: Hands, target: Target) -> bool:
    # RMPQUERY came with it, asks about a VMPL, and changes nothing.
    (answer,) = hands.act((RmpQuery(target.tenant.value.gpa, target=1),))
    return not isinstance(answer, Fault)


def _has_own_launch(target: Target) -> bool:
    return target.victim.gctx != 0 or target.victim.handle != 0


def _has_vc(hands: Hands, _: Target) -> bool:
    (answer,) = hands.act((Cpuid(0),))
    return isinstance(answer, Fault) and answer.kind is FaultKind.VMM_COMMUNICATION


def _hides_registers(hands: Hands, target: Target) -> bool:
    tenant = target.tenant
    *_, page = hands.act(
        (VmKick(tenant.vm, 0), Wbinvd(), HostRead(tenant.save_area, PAGE_BYTES, encrypted=tenant.c_bit))
    )
    return not isinstance(page, bytes) or read_field(page, "RIP") != ROUND_RIP


def _shows_ciphertext(hands: Hands, target: Target) -> bool:
    page = target.tenant.value
    hands.act((Write(page.gpa, _MARK),))
    *_, seen = hands.act((Wbinvd(), HostRead(page.spa, len(_MARK))))
    return seen != _MARK


_LOOKS: Mapping[Interface, Callable[[Hands, Target], bool]] = {
    Interface.C_BIT: _has_c_bit,
    Interface.WAY_PAST_THE_KEY: _lies_in_clear,
    Interface.PAGE_VALIDATION: _has_pvalidate,
    Interface.VMPLS: _has_pvalidate,
    # The firmware is not asked: its refusal would count as protection.
    Interface.ENCRYPTED_REGISTERS: _hides_registers,
    Interface.CIPHERTEXT: _shows_ciphertext,
    Interface.CONTEXT_PAGE: lambda _, target: target.victim.gctx != 0,
    Interface.TDISP: lambda _, target: target.device.tio.trusted and target.victim.generation == "SEV_TIO",
    # Who reads a page copies it; of guests with keys of their own SNP's firmware does it.
    Interface.PAGE_SWAP: lambda _, target: target.victim.gctx != 0 or not target.victim.handle,
    Interface.PDH_LAUNCH: lambda _, target: target.victim.handle != 0,
    Interface.LAUNCH_MEASUREMENT: lambda _, target: _has_own_launch(target),
    Interface.GUEST_KEY: lambda _, target: _has_own_launch(target),
    Interface.VMM_COMMUNICATION: _has_vc,
    Interface.TRANSPARENT_KEY: lambda hands, target: not _lies_in_clear(hands, target),
}
