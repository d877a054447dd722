"""What a core reports in place of an answer: the exceptions of the chips, as faults."""

from __future__ import annotations

from collections.abc import Callable

from node import operations as op
from node.dram import MachineCheck
from node.memory_controller import NoHostKey, NoKey
from node.nested_page_table import NestedMapError, NestedPageFault
from node.rmp import NotValidated, ProtectionFault, RmpFault


def undefined() -> op.Fault:
    """#UD: the role may not execute this instruction, or the part does not have it."""
    return op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


def answer_to(fault: Exception, address: int) -> op.Fault:
    """The fault that a core takes for an exception out of ``FAULTS``."""
    return _ANSWERS[type(fault)](fault, address)


def _machine_check(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.MACHINE_CHECK, address)


def _nested_fault(fault: NestedPageFault, _: int) -> op.Fault:
    return op.Fault(op.FaultKind.NESTED_PAGE_FAULT, fault.gpa, fault.error)


def _rmp_fault(fault: RmpFault, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.RMP_FAULT, address if fault.gpa is None else fault.gpa, fault.error)


def _protection(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.GENERAL_PROTECTION, address)


def _not_validated(fault: NotValidated, _: int) -> op.Fault:
    return op.Fault(op.FaultKind.PAGE_NOT_VALIDATED, fault.gpa)


_ANSWERS: dict[type[Exception], Callable[..., op.Fault]] = {
    MachineCheck: _machine_check,
    NoKey: _machine_check,
    NoHostKey: _machine_check,
    NestedPageFault: _nested_fault,
    RmpFault: _rmp_fault,
    NotValidated: _not_validated,
    ProtectionFault: _protection,
    # What software got wrong before it stored anything: the fault that an impossible address would end in.
    NestedMapError: _protection,
}

FAULTS: tuple[type[Exception], ...] = tuple(_ANSWERS)
"""Exceptions of chips that are faults of a core."""
