"""What is true of each victim: its secrets, and a shadow copy of its memory by guest-physical address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.actor import Actor, Role
from node.operations import (
    Answer,
    Clear,
    Copy,
    Fault,
    Fetch,
    PageStateChange,
    Read,
    RmpAdjust,
    UpkeepRead,
    UpkeepWrite,
    VirtualRead,
    VirtualWrite,
    Write,
)
from node.rmp_checks import PERMIT_WRITE

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Secret:
    """A canary: random bytes that a victim keeps to itself."""

    name: str
    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A victim read something else than it wrote last. ``read`` is all that the load returned, from ``gpa`` on."""

    gpa: int
    at: int
    """The first GPA that differs."""
    read: bytes = field(repr=False)


class CannotFollow(Exception):
    """A victim loaded, fetched or stored by a virtual address that the ledger does not know: no verdict can be trusted.

    Where such bytes lie depends on what VMRUN loaded and on the place of the C-bit, of
    which the transcript does not tell.
    """


@dataclass(frozen=True, slots=True)
class Mapped:
    """Private memory as one vCPU of a victim has it in its own page tables."""

    vcpu: int
    gva: int
    length: int
    gpa: int


class Ledger:
    """Secrets and known contents of every victim, named as its VM is."""

    def __init__(self) -> None:
        self._secrets: dict[str, list[Secret]] = {}
        self._contents: dict[str, list[tuple[int, bytes]]] = {}
        self._least_trusted: dict[str, int] = {}
        self._promises: dict[str, dict[int, bytes]] = {}
        self._counters: dict[str, tuple[int, ...]] = {}
        self._decisions: dict[str, tuple[int, ...]] = {}
        self._mappings: dict[str, list[Mapped]] = {}
        self._entrusted: dict[str, list[tuple[int, int]]] = {}
        self._devices_write: dict[str, list[tuple[int, int]]] = {}

    @property
    def victims(self) -> tuple[str, ...]:
        """Everybody who has something to lose."""
        return tuple(self._secrets)

    def protect(self, victim: str) -> None:
        """Count a VM among the victims; its writes are followed."""
        self._secrets.setdefault(victim, [])
        self._contents.setdefault(victim, [])

    def distrust_above(self, victim: str, vmpl: int) -> None:
        """Count what a VM runs at VMPLs of higher number than this among its adversaries."""
        self.protect(victim)
        self._least_trusted[victim] = vmpl

    def is_victim(self, actor: Actor) -> bool:
        """Whether an actor has something to lose: a guest of the name, at a VMPL that is its own."""
        if actor.role is not Role.GUEST or actor.name not in self._secrets:
            return False
        return actor.vmpl <= self._least_trusted.get(actor.name, actor.vmpl)

    def keep(self, victim: str, name: str, octets: bytes) -> None:
        """Enter a secret of a victim."""
        self.protect(victim)
        self._secrets[victim].append(Secret(name, octets))

    def decide(self, victim: str, bits: Sequence[int]) -> None:
        """Enter what a victim will decide, round by round: secret bits, of which no byte need be told."""
        self.protect(victim)
        self._decisions[victim] = tuple(bits)

    def decisions(self, victim: str) -> tuple[int, ...]:
        """A victim's decisions."""
        return self._decisions.get(victim, ())

    def map(self, victim: str, vcpu: int, gva: int, length: int, gpa: int) -> None:
        """Enter which private memory one of a victim's vCPUs means by a range of virtual addresses.

        That is what its own page tables say, from before the first access on and for good.
        """
        self.protect(victim)
        self._mappings.setdefault(victim, []).append(Mapped(vcpu, gva, length, gpa))

    def lay(self, victim: str, gpa: int, octets: bytes) -> None:
        """Enter what private memory held from the start, as a launch laid it."""
        self.protect(victim)
        self._contents[victim].append((gpa, octets))

    def promise(self, victim: str, gpa: int, octets: bytes) -> None:
        """Enter what a victim stores at a private address whenever it does, as long as nobody makes it do otherwise."""
        self.protect(victim)
        self._promises.setdefault(victim, {})[gpa] = octets

    def count_up(self, victim: str, gpa: int) -> None:
        """Enter that the numbers of 8 bytes which a victim stores at a private address never repeat and only grow."""
        self.protect(victim)
        self._counters[victim] = (*self._counters.get(victim, ()), gpa)

    def entrust(self, victim: str, gpa: int, length: int) -> None:
        """Enter shared memory in which a victim hands things to its own device: storing there is not publishing."""
        self.protect(victim)
        self._entrusted.setdefault(victim, []).append((gpa, length))

    def is_entrusted(self, victim: str, gpa: int, length: int) -> bool:
        """Whether a range is such memory."""
        return any(at <= gpa and gpa + length <= at + size for at, size in self._entrusted.get(victim, ()))

    def let_devices_write(self, victim: str, gpa: int, length: int) -> None:
        """Enter private pages that a victim's own device writes: what it reads there it need not have written."""
        self.protect(victim)
        self._devices_write.setdefault(victim, []).append((gpa, length))

    def counters(self, victim: str) -> tuple[int, ...]:
        """GPAs of a victim's numbers that only grow."""
        return self._counters.get(victim, ())

    def promises(self, victim: str) -> Mapping[int, bytes]:
        """A victim's promises, by GPA."""
        return self._promises.get(victim, {})

    def secrets(self, victim: str) -> tuple[Secret, ...]:
        """A victim's secrets."""
        return tuple(self._secrets[victim])

    def shadow(self, victim: str) -> ShadowMemory:
        """A victim's private memory as it was in the beginning, to be followed from there."""
        shadow = ShadowMemory(tuple(self._mappings.get(victim, ())))
        for gpa, octets in self._contents[victim]:
            shadow.write(gpa, octets)
        for gpa, length in self._devices_write.get(victim, ()):
            shadow.let_in(gpa, length, others=True)
        return shadow


class ShadowMemory:
    """What a victim wrote last at each private address; what it never wrote is unknown."""

    def __init__(self, mappings: tuple[Mapped, ...] = ()) -> None:
        self._mappings = mappings
        self._pages: dict[int, tuple[bytearray, bytearray]] = {}
        """Contents, and 1 where a byte is known."""
        self._open: set[int] = set()
        """Pages that others may write, too."""

    def write(self, gpa: int, octets: bytes) -> None:
        """The victim stored bytes."""
        for page, offset, start, length in _pieces(gpa, len(octets)):
            if page in self._open:
                continue
            contents, known = self._pages.setdefault(page, (bytearray(PAGE_BYTES), bytearray(PAGE_BYTES)))
            contents[offset : offset + length] = octets[start : start + length]
            known[offset : offset + length] = b"\1" * length

    def forget(self, gpa: int, length: int) -> None:
        """The victim gave a range away, or uses it in another way."""
        end = gpa + length
        for page in [one for one in self._pages if gpa < (one + 1) * PAGE_BYTES and one * PAGE_BYTES < end]:
            base = page * PAGE_BYTES
            first, last = max(gpa - base, 0), min(end - base, PAGE_BYTES)
            self._pages[page][1][first:last] = bytes(last - first)

    def let_in(self, gpa: int, length: int, *, others: bool) -> None:
        """The victim lets others write whole pages of a range, or the processor; or no more."""
        pages = range(gpa // PAGE_BYTES, (gpa + length) // PAGE_BYTES)
        if others:
            self.forget(gpa, length)
            self._open.update(pages)
        else:
            self._open.difference_update(pages)

    def first_difference(self, gpa: int, octets: bytes) -> int | None:
        """The first GPA at which bytes that were read are not those written last; None if there is none."""
        for page, offset, start, length in _pieces(gpa, len(octets)):
            if page not in self._pages:
                continue
            contents, known = self._pages[page]
            if octets[start : start + length] == contents[offset : offset + length]:
                continue
            for at in range(length):
                if known[offset + at] and octets[start + at] != contents[offset + at]:
                    return gpa + start + at
        return None

    def meant(self, vcpu: int, gva: int, length: int) -> int:
        """Where a vCPU's virtual addresses lie, by what the victim's own tables say. Raises CannotFollow."""
        for one in self._mappings:
            if one.vcpu == vcpu and one.gva <= gva and gva + length <= one.gva + one.length:
                return one.gpa + gva - one.gva
        raise CannotFollow

    def follow(self, operation: object, answer: Answer, vcpu: int = 0) -> Discrepancy | None:
        """Take one operation of the victim and its answer; what it read wrongly, if it did. Raises CannotFollow."""
        step = _STEPS.get(type(operation))
        if step is None or isinstance(answer, Fault):
            return None
        return step(self, operation, answer, vcpu)


def _read(shadow: ShadowMemory, one: Read, answer: Answer, _vcpu: int = 0) -> Discrepancy | None:
    if not one.private or not isinstance(answer, bytes):
        return None
    at = shadow.first_difference(one.gpa, answer)
    return None if at is None else Discrepancy(one.gpa, at, answer)


def _write(shadow: ShadowMemory, one: Write, _: Answer, _vcpu: int = 0) -> None:
    if one.private:
        shadow.write(one.gpa, one.data)
    else:
        # The same address used as shared memory: what a private load returns from now on is not the victim's.
        shadow.forget(one.gpa, len(one.data))


def _clear(shadow: ShadowMemory, one: Clear, _: Answer, _vcpu: int = 0) -> None:
    # What is cleared holds nothing that the victim would miss, and may be larger than is worth a shadow.
    shadow.forget(one.gpa, one.length)


def _copy(shadow: ShadowMemory, one: Copy, answer: Answer, _vcpu: int = 0) -> Discrepancy | None:
    assert isinstance(answer, bytes)
    wrong = _read(shadow, Read(one.source, one.length, one.source_private), answer)
    _write(shadow, Write(one.target, answer, one.target_private), None)
    return wrong


def _rmpadjust(shadow: ShadowMemory, one: RmpAdjust, answer: Answer, _vcpu: int = 0) -> None:
    if answer == 0:
        shadow.let_in(one.gpa, one.length, others=one.vmsa or bool(one.permissions & PERMIT_WRITE))


def _page_state_change(shadow: ShadowMemory, one: PageStateChange, answer: Answer, _vcpu: int = 0) -> None:
    if answer == 0:
        shadow.forget(one.gpa, one.length)


def _virtual_read(shadow: ShadowMemory, one: VirtualRead | Fetch, answer: Answer, vcpu: int) -> Discrepancy | None:
    return _read(shadow, Read(shadow.meant(vcpu, one.gva, one.length), one.length), answer)


def _virtual_write(shadow: ShadowMemory, one: VirtualWrite, answer: Answer, vcpu: int) -> None:
    _write(shadow, Write(shadow.meant(vcpu, one.gva, len(one.data)), one.data), answer)


_STEPS: Mapping[type, Callable[..., Discrepancy | None]] = {
    Read: _read,
    Write: _write,
    UpkeepRead: _read,
    UpkeepWrite: _write,
    Clear: _clear,
    Copy: _copy,
    RmpAdjust: _rmpadjust,
    PageStateChange: _page_state_change,
    VirtualRead: _virtual_read,
    Fetch: _virtual_read,
    VirtualWrite: _virtual_write,
}


def _pieces(gpa: int, length: int) -> list[tuple[int, int, int, int]]:
    """A range cut at pages, as (page, offset in page, offset in range, length)."""
    pieces, start = [], 0
    while start < length:
        page, offset = divmod(gpa + start, PAGE_BYTES)
        size = min(length - start, PAGE_BYTES - offset)
        pieces.append((page, offset, start, size))
        start += size
    return pieces
