"""What the board does with instructions that every hypervisor intercepts (``intercepted_operations``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node import operations as op
from node.intercepted_operations import MOST_STRING_BYTES
from node.vmcb import Vmcb
from node.vmexit import ExitCode, Route, route

PORT_WIDTHS = (1, 2, 4)
_PORTS, _MSRS, _WORD = 1 << 16, 1 << 32, 1 << 64


def _general_protection() -> op.Fault:
    return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)


def _intercepted(vmcb: Vmcb, code: ExitCode, otherwise: op.Answer) -> op.Answer:
    if route(vmcb.generation, code) is Route.VC_HANDLER:
        return op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, code)
    return otherwise


def _rdmsr(vmcb: Vmcb, one: op.Rdmsr) -> op.Answer:
    if not 0 <= one.index < _MSRS:
        return _general_protection()
    return _intercepted(vmcb, ExitCode.MSR, _general_protection())


def _wrmsr(vmcb: Vmcb, one: op.Wrmsr) -> op.Answer:
    if not 0 <= one.index < _MSRS or not 0 <= one.value < _WORD:
        return _general_protection()
    return _intercepted(vmcb, ExitCode.MSR, _general_protection())


def _port_in(vmcb: Vmcb, one: op.PortIn) -> op.Answer:
    if one.width not in PORT_WIDTHS or not 0 <= one.port < _PORTS:
        return _general_protection()
    return _intercepted(vmcb, ExitCode.IOIO, (1 << 8 * one.width) - 1)


def _port_out(vmcb: Vmcb, one: op.PortOut) -> op.Answer:
    if one.width not in PORT_WIDTHS or not 0 <= one.port < _PORTS or not 0 <= one.value < 1 << 8 * one.width:
        return _general_protection()
    return _intercepted(vmcb, ExitCode.IOIO, None)


def _port_in_string(vmcb: Vmcb, one: op.PortInString) -> op.Answer:
    length = one.count * one.width
    if one.width not in PORT_WIDTHS or not 0 <= one.port < _PORTS or not 0 < length <= MOST_STRING_BYTES:
        return _general_protection()
    return _intercepted(vmcb, ExitCode.IOIO, b"\xff" * length)


def _port_out_string(vmcb: Vmcb, one: op.PortOutString) -> op.Answer:
    length = len(one.data)
    if one.width not in PORT_WIDTHS or not 0 <= one.port < _PORTS or not 0 < length <= MOST_STRING_BYTES:
        return _general_protection()
    return _general_protection() if length % one.width else _intercepted(vmcb, ExitCode.IOIO, None)


def _write_back(vmcb: Vmcb, _: op.WriteBackCaches) -> op.Answer:
    return _intercepted(vmcb, ExitCode.WBINVD, None)


INTERCEPTED: Mapping[type, Callable[..., op.Answer]] = {
    op.Rdmsr: _rdmsr,
    op.Wrmsr: _wrmsr,
    op.PortIn: _port_in,
    op.PortOut: _port_out,
    op.PortInString: _port_in_string,
    op.PortOutString: _port_out_string,
    op.WriteBackCaches: _write_back,
}
