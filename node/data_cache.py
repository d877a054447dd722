"""Write-back data caches: 64-byte lines of plaintext, tagged with address and key.

What a tag names besides the SPA is the encryption domain of the access: a guest's
ASID, 0 for an access without a key, or the host's key. Rules (APM volume 2, 7.10.6
and 15.34.9; Linux ``arch/x86/kvm/svm/sev.c``):

- An access finds only lines of its own domain. On a part that is not coherent across
  domains (CPUID 8000001F EAX bit 10 clear) several lines of one SPA live side by side,
  and whichever is written back last is what memory holds. On a coherent part an access
  first writes back and drops what other domains hold of its lines.
- A write-back is checked by nobody: the RMP was asked at the store.
- The key of a line is used when it is written back, not when it was stored. A line
  whose key has gone meanwhile is lost (what silicon does then is not documented).

All caches of a host are one here; which core holds a line makes a difference to
timing alone, and that is ``cache_timing``'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import Protocol

LINE_BYTES = 64
LINES = 16384
"""1 MiB: small enough that lines are evicted, large enough for a page or two of everybody."""

Tag = tuple[int, int]
"""(SPA / 64, domain)."""


class MemoryBehind(Protocol):
    """What lines come from and go to."""

    def __call__(self, spa: int, length: int, domain: int, /) -> bytes:
        """Whole lines through the domain's key."""


class DataCache:
    """At most ``lines`` lines; the least recently used one makes room.

    ``fill`` reads memory through a domain's key, ``drain`` writes it. Ranges of
    ``unkept`` are loaded anew each time: their owner changes them behind the caches.
    """

    def __init__(
        self,
        fill: MemoryBehind,
        drain: Callable[[int, bytes, int], None],
        *,
        coherent: bool,
        lines: int = LINES,
        unkept: tuple[range, ...] = (),
    ) -> None:
        self.lines = lines
        self._fill = fill
        self._drain = drain
        self._coherent = coherent
        self.unkept = unkept
        self._held: OrderedDict[Tag, bytearray] = OrderedDict()
        self._dirty: set[Tag] = set()
        self._domains: dict[int, list[int]] = {}
        """For each line's number the domains that hold it, in the order they came."""

    def __len__(self) -> int:
        """Lines held."""
        return len(self._held)

    # A core's own accesses.

    def load(self, spa: int, length: int, domain: int) -> bytes:
        """Load bytes. Raises what ``fill`` raises."""
        if length <= 0:
            return self._fill(spa, length, domain)
        first, last = spa // LINE_BYTES, (spa + length - 1) // LINE_BYTES
        line = self._line(last, domain)  # if the end faults, nothing has happened
        offset = spa % LINE_BYTES
        if first == last:
            return bytes(line[offset : offset + length])
        parts = [self._loaded(start, stop, domain) for start, stop in self._stretches(first, last + 1)]
        return b"".join(parts)[offset : offset + length]

    def store(self, spa: int, data: bytes | bytearray | memoryview, domain: int) -> None:
        """Store bytes, which memory learns of later. Raises what ``fill`` raises, with nothing stored."""
        length = len(data)
        if not length:
            self._fill(spa, 0, domain)
            return
        first, last = spa // LINE_BYTES, (spa + length - 1) // LINE_BYTES
        for number in (first, last):
            self._line(number, domain)
        view = memoryview(data)
        self._store_in(first, spa, view, domain)
        for start, stop in self._stretches(first + 1, last):
            if start in self._domains:
                self._store_in(start, spa, view, domain)
            else:
                self._store_whole(start, stop, view[start * LINE_BYTES - spa : stop * LINE_BYTES - spa], last, domain)
        if last > first:
            self._store_in(last, spa, view, domain)
        self._make_room()

    # What others do to lines.

    def flush(self, spa: int, length: int, domain: int) -> None:
        """CLFLUSH: write back and drop what a domain holds of a range, on a coherent part what any does."""
        self._drop(self._tags(spa, length, None if self._coherent else domain))

    def flush_domain(self, spa: int, length: int, domain: int) -> None:
        """Write back and drop what one domain holds of a range, whatever the part: VM_PAGE_FLUSH."""
        self._drop(self._tags(spa, length, domain))

    def flush_all(self) -> None:
        """WBINVD on all cores: write everything back and hold nothing."""
        self._drop(list(self._held))

    def invalidate_all(self) -> None:
        """INVD on all cores: hold nothing, and forget what memory does not know."""
        self._held.clear()
        self._dirty.clear()
        self._domains.clear()

    def snooped(self, spa: int, data: bytes, domain: int) -> bytes:
        """What an agent reads that found ``data`` in memory: dirty lines of its domain answer, and stay dirty."""
        dirty = [tag for tag in self._tags(spa, len(data), domain) if tag in self._dirty]
        if not dirty:
            return data
        answer = bytearray(data)
        for tag in dirty:
            line, at = self._held[tag], tag[0] * LINE_BYTES - spa
            low, high = max(at, 0), min(at + LINE_BYTES, len(data))
            answer[low:high] = line[low - at : high - at]
        return bytes(answer)

    def give_up(self, spa: int, length: int, domain: int | None) -> None:
        """A domain's lines of a range, with None all, are about to be overwritten: what they hold besides is kept."""
        tags = self._tags(spa, length, domain)
        self._dirty.difference_update(
            [one for one in tags if spa <= one[0] * LINE_BYTES and (one[0] + 1) * LINE_BYTES <= spa + length]
        )
        self._drop(tags)

    def give_up_others(self, spa: int, length: int, domain: int) -> None:
        """Write back and drop what all other domains hold of a range, as coherence across domains demands."""
        self._drop([tag for tag in self._tags(spa, length, None) if tag[1] != domain])

    def write_back(self, spa: int, length: int, domain: int) -> None:
        """Let memory know what a domain holds of a range; the lines stay, clean."""
        dirty = [tag for tag in self._tags(spa, length, domain) if tag in self._dirty]
        self._dirty.difference_update(dirty)
        self._drain_lines([(tag, self._held[tag]) for tag in dirty])

    def _line(self, number: int, domain: int, *, keep: bool = False, whole: bool = False) -> bytearray:
        """The line of a domain, loaded if it is not held."""
        tag = (number, domain)
        line = self._held.get(tag)
        if line is not None:
            self._held.move_to_end(tag)
            return line
        if self._coherent:
            self.give_up_others(number * LINE_BYTES, LINE_BYTES, domain)
        spa = number * LINE_BYTES
        line = bytearray(LINE_BYTES if whole else self._fill(spa, LINE_BYTES, domain))
        if keep or not self._is_unkept(number):
            self._hold(tag, line)
            if not keep:
                self._make_room()
        return line

    def _loaded(self, start: int, stop: int, domain: int) -> bytes:
        """One line that some domain holds, or a stretch that none does."""
        if start in self._domains:
            return bytes(self._line(start, domain))
        data = self._fill(start * LINE_BYTES, (stop - start) * LINE_BYTES, domain)
        if not self._is_unkept(start):
            # Of more than there is room for the last remain.
            for number in range(max(start, stop - self.lines), stop):
                at = (number - start) * LINE_BYTES
                self._hold((number, domain), bytearray(data[at : at + LINE_BYTES]))
            self._make_room()
        return data

    def _store_in(self, number: int, spa: int, data: memoryview, domain: int) -> None:
        """What a store to ``spa`` puts into one line."""
        at = max(number * LINE_BYTES - spa, 0)
        offset = spa + at - number * LINE_BYTES
        size = min(LINE_BYTES - offset, len(data) - at)
        # A line that is stored whole need not be loaded first.
        line = self._line(number, domain, keep=True, whole=size == LINE_BYTES)
        line[offset : offset + size] = data[at : at + size]
        self._dirty.add((number, domain))

    def _store_whole(self, start: int, stop: int, data: memoryview, last: int, domain: int) -> None:
        """Store a stretch of lines that no domain holds; one that is too far before ``last`` to stay goes to memory."""
        stays = max(start, min(stop, last + 1 - self.lines))
        if start < stays:
            self._drain(start * LINE_BYTES, bytes(data[: (stays - start) * LINE_BYTES]), domain)
        for number in range(stays, stop):
            at = (number - start) * LINE_BYTES
            self._hold((number, domain), bytearray(data[at : at + LINE_BYTES]))
            self._dirty.add((number, domain))

    def _stretches(self, first: int, end: int) -> Iterable[tuple[int, int]]:
        """Lines cut into those that some domain holds, one by one, and stretches that none does: all kept, or none."""
        numbers, domains = range(first, end), self._domains
        if len(domains) < len(numbers):
            held = [number for number in domains if number in numbers]
        else:
            held = [number for number in numbers if number in domains]
        cuts = {first, end, *held, *[number + 1 for number in held]}
        borders = [-(-spa // LINE_BYTES) for one in self.unkept for spa in (one.start, one.stop)]
        cuts.update(number for number in borders if number in numbers)
        return pairwise(sorted(cuts)) if first < end else ()

    def _is_unkept(self, number: int) -> bool:
        return any(number * LINE_BYTES in one for one in self.unkept)

    def _hold(self, tag: Tag, line: bytearray) -> None:
        self._held[tag] = line
        self._domains.setdefault(tag[0], []).append(tag[1])

    def _make_room(self) -> None:
        if len(self._held) > self.lines:
            self._drop(list(islice(self._held, len(self._held) - self.lines)))

    def _drop(self, tags: Iterable[Tag]) -> None:
        """Hold lines no longer; dirty ones are written back, in this order."""
        dirty = []
        for tag in tags:
            line = self._held.pop(tag)
            number, domain = tag
            domains = self._domains[number]
            domains.remove(domain)
            if not domains:
                del self._domains[number]
            if tag in self._dirty:
                self._dirty.discard(tag)
                dirty.append((tag, line))
        self._drain_lines(dirty)

    def _drain_lines(self, lines: list[tuple[Tag, bytearray]]) -> None:
        """Write lines back, each one's neighbours that follow it together with it."""
        start = 0
        for end in range(1, len(lines) + 1):
            (number, domain), _ = lines[end - 1]
            if end == len(lines) or lines[end][0] != (number + 1, domain):
                first = lines[start][0][0]
                self._drain(first * LINE_BYTES, b"".join([line for _, line in lines[start:end]]), domain)
                start = end

    def _tags(self, spa: int, length: int, domain: int | None) -> list[Tag]:
        """Lines held that touch a range, of one domain or of all, looked for on the shorter side."""
        numbers = range(spa // LINE_BYTES, -(-(spa + length) // LINE_BYTES) if length > 0 else spa // LINE_BYTES)
        if len(numbers) > len(self._domains):
            return [tag for tag in self._held if tag[0] in numbers and domain in (None, tag[1])]
        return [
            (number, one)
            for number in numbers
            for one in self._domains.get(number, ())
            if domain in (None, one)
        ]
