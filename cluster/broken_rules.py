"""What is said of entities that break the rules of ``cluster.entity``, whoever has them go on."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.entity import Message
from cluster.inbox import ProtocolViolationError


def wrong_advance(name: str, events: int, horizon_ns: int, reached_ns: int) -> ProtocolViolationError:
    """An entity did nothing though it had an event to do, or went past its horizon."""
    if events == 0:
        return ProtocolViolationError(f"{name}: did nothing, with an event before {horizon_ns} ns to do")
    return ProtocolViolationError(f"{name}: went to {reached_ns} ns, past its horizon {horizon_ns} ns")


def broken_promise(name: str, message: Message, promise_ns: int) -> ProtocolViolationError:
    """An entity sent a message earlier than it had promised."""
    return ProtocolViolationError(
        f"{name}: sent at {message.time_ns} ns, but had promised nothing before {promise_ns} ns"
    )


def acted_already(heard: Sequence[Message], acted_ns: int) -> ProtocolViolationError:
    """The control plane is to act again at a time at which it has: the first of what was heard came late, or it did."""
    if not heard or heard[0].time_ns > acted_ns:
        return stood_still(acted_ns)
    late = heard[0]
    return ProtocolViolationError(
        f"{late.sender}: sent at {late.time_ns} ns, but the control plane has acted at {acted_ns} ns"
    )


def undercut(message: Message, now_ns: int) -> ProtocolViolationError:
    """The control plane's mail would reach a host sooner than anything may."""
    return ProtocolViolationError(
        f"{message.sender}: sent at {now_ns} ns for {message.time_ns} ns, inside the lookahead"
    )


def wrong_mail(message: Message, now_ns: int, *, here: bool) -> ProtocolViolationError:
    """The control plane's mail would come too soon, or reaches nobody."""
    if here:
        return undercut(message, now_ns)
    return ProtocolViolationError(f"{message.sender}: sent a message to {message.receiver}, which is not here")


def stood_still(now_ns: int) -> ProtocolViolationError:
    """The control plane would act at the same time for ever."""
    return ProtocolViolationError(f"control plane: did not move on from {now_ns} ns")
