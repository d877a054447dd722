"""What trusted parties say of guests on their way: migration agents of their peers, firmware of pages that come in."""

from __future__ import annotations

import msgpack

from node.agent_core import DONE, REFUSED
from node.operations import AgentCall, Answer, PspAnswer, PspCommand
from psp.commands import SnpCommand
from psp.status import Status
from psp.swap_buffers import SnpPageSwapIn


class MovedGuests:
    """Followed through what hypervisors did, on all hosts.

    An agent that does not believe a peer has found a lie; so has firmware whose tag does not fit a page of a guest
    that an agent has taken in. An order that either does not carry out, for another reason, is only refused.
    """

    def __init__(self) -> None:
        self._guests: dict[int, str] = {}
        """Whose context an agent put where."""

    def noticed(self, one: object, answer: Answer) -> tuple[str, str]:
        """Which guest is concerned, and what somebody noticed; both empty for nothing."""
        if isinstance(one, AgentCall):
            return self._of_agent(one, answer)
        if isinstance(one, PspCommand) and one.command == SnpCommand.PAGE_SWAP_IN and one.buffer:
            wrong = isinstance(answer, PspAnswer) and answer.status == Status.BAD_MEASUREMENT
            guest = self._guests.get(SnpPageSwapIn.parse(one.buffer).gctx, "")
            if wrong and guest:
                return guest, f"firmware finds the tag of a page of {guest} wrong"
        return "", ""

    def _of_agent(self, one: AgentCall, answer: Answer) -> tuple[str, str]:
        match _unpacked(one.order), _said(answer):
            case ("import", str(vm), int(gctx), *_), (str(word), _) if word == DONE:
                self._guests[gctx] = vm
            case ("meet", str(vm), *_), (str(word), str(why)) if word == REFUSED:
                return vm, f"migration agent: {why}"
        return "", ""


def refused_by_agent(answer: bytes) -> bool:
    """Whether an agent does not do what it was told."""
    return _said(answer)[0] == REFUSED


def _said(answer: Answer) -> tuple[object, object]:
    match _unpacked(answer) if isinstance(answer, bytes) else None:
        case (str(word), said):
            return word, said
    return "", None


def _unpacked(data: bytes) -> object:
    """What somebody says; None for what is no msgpack: orders are anybody's."""
    try:
        return msgpack.unpackb(data, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None
