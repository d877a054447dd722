"""A guest kernel's side of the GHCB: messages and page exits as parts of a block, whose answers are checked.

Each is a generator to be used with ``yield from``. An answer that a guest must not
go on with raises GhcbMsrError or GhcbUntrusted; ``settings`` say what a kernel does not look at.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from node.ghcb_msr import (
    GhcbMsrError,
    MsrMessage,
    RegisteredGhcb,
    RegisterGhcbRequest,
    SevInfo,
    SevInfoRequest,
    TerminateRequest,
    parse_response,
)
from node.ghcb_page import (
    GHCB_BYTES,
    SHARED_BUFFER,
    SHARED_BUFFER_BYTES,
    GhcbReply,
    GhcbUntrusted,
    build_exit,
    parse_reply,
    take_reply,
)
from node.kernel_settings import CAREFUL, KernelSettings
from node.nae_event import EVENTS, NaeEvent
from node.operations import Answer, GuestOperation, UpkeepRead, UpkeepWrite, VmgExit
from node.page_state_list import (
    LIST_BYTES,
    MOST_ENTRIES,
    PageOperation,
    PageStateEntry,
    build_list,
    current_entry,
    entries_of,
)

Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]
Asking = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], GhcbReply]


def response_to(request: MsrMessage, answer: Answer) -> MsrMessage:
    """The hypervisor's response in the answer to a ``VmgExit``. Raises GhcbMsrError."""
    if not isinstance(answer, int):
        raise GhcbMsrError(f"VMGEXIT: {answer!r}")
    return parse_response(request, answer)


def is_response(request: MsrMessage, answer: Answer, wanted: MsrMessage) -> bool:
    """Whether the hypervisor's response is the one that is wanted."""
    try:
        return response_to(request, answer) == wanted
    except GhcbMsrError:
        return False


def is_registered(request: RegisterGhcbRequest, answer: Answer, settings: KernelSettings = CAREFUL) -> bool:
    """Whether the hypervisor has registered the page that it was asked to, as far as a kernel looks."""
    return not settings.checks_replies or is_response(request, answer, RegisteredGhcb(request.gfn))


def versions_fit(request: SevInfoRequest, answer: Answer, settings: KernelSettings = CAREFUL) -> bool:
    """Whether the hypervisor speaks the kernel's version."""
    try:
        info = response_to(request, answer)
    except GhcbMsrError:
        return False
    return isinstance(info, SevInfo) and info.min_version <= settings.ghcb_version <= info.max_version


def termination(reason_set: int, reason_code: int) -> VmgExit:
    """The exit that does not come back."""
    return VmgExit(TerminateRequest(reason_set, reason_code).value)


def page_exit(
    gpa: int,
    event: NaeEvent,
    info1: int = 0,
    info2: int = 0,
    registers: Mapping[str, int] = MappingProxyType({}),
    buffer: bytes = b"",
    outputs: tuple[str, ...] | None = None,
    settings: KernelSettings = CAREFUL,
    *,
    instead: bool = False,
) -> Asking:
    """One exit with the GHCB page at ``gpa``; the reply's ``outputs`` are those of the event if nothing is said.

    ``instead`` as of ``VmgExit``.
    """
    page = build_exit(event, info1, info2, registers, buffer, settings.ghcb_version)
    _, reply = yield from _exit(gpa, page, event, outputs, settings, instead=instead)
    return reply


def exit_between(
    gpa: int,
    event: NaeEvent,
    infos: tuple[int, int],
    registers: Mapping[str, int],
    before: GuestOperation,
    after: GuestOperation,
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[GhcbReply, Answer]]:
    """The same in one batch with what must come just before it and just after it; the reply, and the answer to that."""
    page = build_exit(event, *infos, registers)
    wrote, *answers, last = yield (before, *_around(gpa, page), after)
    if wrote is not None:
        raise GhcbUntrusted(f"{event.name}: {wrote!r}")
    _, reply = _answered(gpa, tuple(answers), EVENTS[event].outputs, CAREFUL)
    return reply, last


def change_pages(
    gpa: int, first: int, length: int, operation: PageOperation, settings: KernelSettings = CAREFUL
) -> Steps:
    """Page state changes of a range by lists in the page's own buffer, until every entry is through.

    Raises GhcbUntrusted for a status, for an entry that does not move on, and for more exits than entries.
    """
    for entries, packed in _lists(first, length, operation):
        yield from _change(gpa, entries, packed, settings)


def mmio_load(
    gpa: int, device_gpa: int, length: int, settings: KernelSettings = CAREFUL
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]:
    """A load from a device's register by an exit with the GHCB page at ``gpa``."""
    registers = {"SW_SCRATCH": gpa + SHARED_BUFFER}
    page = build_exit(NaeEvent.MMIO_READ, device_gpa, length, registers, version=settings.ghcb_version)
    back, reply = yield from _exit(gpa, page, NaeEvent.MMIO_READ, None, settings, instead=True)
    if reply.exception is not None:
        raise GhcbUntrusted(f"MMIO: exception {reply.exception}")
    return int.from_bytes(back[SHARED_BUFFER : SHARED_BUFFER + length], "little")


def mmio_store(gpa: int, device_gpa: int, value: int, length: int, settings: KernelSettings = CAREFUL) -> Steps:
    """A store to a device's register by an exit with the GHCB page at ``gpa``."""
    registers, stored = {"SW_SCRATCH": gpa + SHARED_BUFFER}, value.to_bytes(length, "little")
    page = build_exit(NaeEvent.MMIO_WRITE, device_gpa, length, registers, stored, settings.ghcb_version)
    _, reply = yield from _exit(gpa, page, NaeEvent.MMIO_WRITE, None, settings, instead=True)
    if reply.exception is not None:
        raise GhcbUntrusted(f"MMIO: exception {reply.exception}")


def string_in(
    gpa: int, port: int, count: int, width: int, settings: KernelSettings = CAREFUL
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], bytes]:
    """REP INS of so many units by exits with the GHCB page at ``gpa``, each with as much as its buffer holds."""
    data = b""
    while len(data) < count * width:
        length = min(count * width - len(data), SHARED_BUFFER_BYTES // width * width)
        back = yield from _string(gpa, port << 16 | _STRING | _IN | width << 4, length // width, b"", settings)
        data += back[SHARED_BUFFER : SHARED_BUFFER + length]
    return data


def string_out(gpa: int, port: int, data: bytes, width: int, settings: KernelSettings = CAREFUL) -> Steps:
    """REP OUTS of the same kind."""
    step = SHARED_BUFFER_BYTES // width * width
    for at in range(0, len(data), step):
        some = data[at : at + step]
        yield from _string(gpa, port << 16 | _STRING | width << 4, len(some) // width, some, settings)


def _string(
    gpa: int, info: int, units: int, buffer: bytes, settings: KernelSettings
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], bytes]:
    registers = {"SW_SCRATCH": gpa + SHARED_BUFFER}
    page = build_exit(NaeEvent.IOIO, info, units, registers, buffer, settings.ghcb_version)
    back, reply = yield from _exit(gpa, page, NaeEvent.IOIO, (), settings, instead=True)
    if reply.exception is not None:
        raise GhcbUntrusted(f"string I/O: exception {reply.exception}")
    return back


_IN = 1 << 0
_STRING = 1 << 2 | 1 << 3 | 1 << 9
"""SW_EXITINFO1 of IOIO: a string, repeated, with addresses of 64 bits."""


@lru_cache(maxsize=8)
def _lists(first: int, length: int, operation: PageOperation) -> tuple[tuple[Sequence[PageStateEntry], bytes], ...]:
    """Lists for a range, each as entries and packed; kernels that start alike lay down the same."""
    entries = tuple(entries_of(first, length, operation))
    parts = [entries[start : start + MOST_ENTRIES] for start in range(0, len(entries), MOST_ENTRIES)]
    return tuple([(part, build_list(part)) for part in parts])


def _change(gpa: int, entries: Sequence[PageStateEntry], packed: bytes, settings: KernelSettings) -> Steps:
    done = 0
    while done < len(entries):
        # What is left goes in a list of its own: nothing that came back is sent again.
        registers = {"SW_SCRATCH": gpa + SHARED_BUFFER}
        left = build_list(entries[done:]) if done else packed
        page = build_exit(NaeEvent.PAGE_STATE_CHANGE, 0, 0, registers, left, settings.ghcb_version)
        back, reply = yield from _exit(gpa, page, NaeEvent.PAGE_STATE_CHANGE, None, settings)
        if not settings.checks_page_states:
            return
        moved = current_entry(back[SHARED_BUFFER : SHARED_BUFFER + LIST_BYTES])
        if reply.info2:
            raise GhcbUntrusted(f"page state change: status {reply.info2:#x}")
        if not 0 < moved <= len(entries) - done:
            raise GhcbUntrusted(f"page state change: current entry {moved} of {len(entries) - done}")
        done += moved


def _exit(
    gpa: int,
    page: bytes,
    event: NaeEvent,
    outputs: tuple[str, ...] | None,
    settings: KernelSettings,
    *,
    instead: bool = False,
) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[bytes, GhcbReply]]:
    answers = yield _around(gpa, page, instead=instead)
    return _answered(gpa, answers, EVENTS[event].outputs if outputs is None else outputs, settings)


def _around(gpa: int, page: bytes, *, instead: bool = False) -> tuple[GuestOperation, ...]:
    return (
        UpkeepWrite(gpa, page, private=False, paid=True),
        VmgExit(gpa, instead),
        UpkeepRead(gpa, GHCB_BYTES, private=False, paid=True),
    )


def _answered(
    gpa: int, answers: tuple[Answer, ...], outputs: tuple[str, ...], settings: KernelSettings
) -> tuple[bytes, GhcbReply]:
    wrote, value, back = answers
    if not settings.checks_replies and isinstance(back, bytes) and len(back) == GHCB_BYTES:
        return back, take_reply(back, outputs)
    if wrote is not None or value != gpa or not isinstance(back, bytes) or len(back) != GHCB_BYTES:
        raise GhcbUntrusted(f"VMGEXIT: {answers[:2]!r}")
    return back, parse_reply(back, outputs)
