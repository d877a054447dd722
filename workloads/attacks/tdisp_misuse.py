"""Who is not the firmware asks a device for what is not his: interfaces and keys (rows 75 and 83).

In a session of its own, and through the firmware's commands out of their order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from node.guest_functions import guest_device_id
from node.tio_carrier import TioRefused
from psp.commands import SnpCommand
from psp.tsm import tio_buffers as tio
from psp.tsm.scatter_address import data_page
from tio.card import STREAM_PORT
from tio.device_security_module import ProtocolId
from tio.ide import Direction, SubStream
from tio.ide import key_programmer as keys
from tio.spdm.faults import MalformedMessage, PeerRefused
from tio.tdisp import InterfaceId, LockRequest, TdispError, requester
from tio.tdisp.messages import NONCE_BYTES
from workloads.attacks.own_session import OwnSession, Steps, carried
from workloads.attacks.target import LET_IT_RUN, Attack, Target

Question = Callable[[], Generator[bytes, bytes, object]]
_REFUSED = (TdispError, keys.KeyProgrammingError, PeerRefused, MalformedMessage)


def by_own_session(target: Target) -> Attack:
    """Row 75: report before lock, lock without keys, start with a nonce of nobody's, lock twice, stop."""
    own = yield from opened(target)
    wrong = misuses(InterfaceId(target.device.function.requester), target.device.given.card.stream_id)
    yield from asked(own, ProtocolId.TDISP, wrong[:-1])
    yield LET_IT_RUN
    yield from asked(own, ProtocolId.TDISP, wrong)


def misuses(interface: InterfaceId, stream: int) -> tuple[Question, ...]:
    """What no device does for who asks out of order, or in another's place; the last it does for nobody's interface."""
    return (
        lambda: requester.read_report(interface),
        lambda: requester.lock_interface(interface, LockRequest(0, stream)),
        lambda: requester.start_interface(interface, bytes(NONCE_BYTES)),
        lambda: requester.stop_interface(interface),
    )


def by_commands(target: Target) -> Attack:
    """Row 75: run and report before lock, and lock twice, as orders to the firmware."""
    device, given = target.device, target.device.given
    yield from device.tio.bind(given, device.gctx)
    yield from device.tio.unbind(given, device.gctx)
    yield LET_IT_RUN
    named = {"device": data_page(given.card.context), "tdi": data_page(given.context), "gctx": device.gctx}
    bind = tio.TdiBind(**named, guest_device_id=guest_device_id(given.device), lock_flags=0)
    assert given.card.carrier is not None
    for _ in range(2):
        try:
            yield from given.card.carrier.call(SnpCommand.TIO_TDI_BIND, bind)
        except TioRefused:
            continue
    yield LET_IT_RUN


def program_keys(target: Target) -> Attack:
    """Row 83: keys of the attacker's for the stream of the victim's device, in both key sets, and started."""
    own = yield from opened(target)
    yield LET_IT_RUN
    yield from asked(own, ProtocolId.IDE_KM, keys_of_its_own(target.device.given.card.stream_id))
    yield LET_IT_RUN


def keys_of_its_own(stream: int) -> tuple[Question, ...]:
    """Keys for a stream, in both sets, started; and those of the set in use stopped."""
    some = {(way, sub): bytes(range(32)) for way in Direction for sub in SubStream}
    return (
        lambda: keys.program_keys(STREAM_PORT, stream, 1, some),
        lambda: keys.program_keys(STREAM_PORT, stream, 0, some),
        lambda: keys.start_keys(STREAM_PORT, stream, 1),
        lambda: keys.stop_keys(STREAM_PORT, stream, 0),
    )


def opened(target: Target) -> Steps[OwnSession]:
    """Have the firmware connect, and the victim's interface locked and let go; and join in."""
    device, heard = target.device, list[bytes]()
    yield from carried(device.tio.bind(device.given, device.gctx), heard)
    yield from device.tio.unbind(device.given, device.gctx)
    own = OwnSession(target, heard)
    yield from own.open()
    return own


def asked(own: OwnSession, protocol: ProtocolId, questions: tuple[Question, ...]) -> Steps[list[str]]:
    """Ask each: what was said against it, empty where it was done."""
    out = []
    for one in questions:
        try:
            yield from own.ask(protocol, one())
        except _REFUSED as refused:
            out.append(str(refused) or repr(refused))
        else:
            out.append("")
    return out
