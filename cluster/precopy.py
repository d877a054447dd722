"""The rounds of one pre-copy migration, worked out from what the host says its guest writes.

Round 0 sends all memory; each later one what was written meanwhile. Distinct
bytes written into a pool of W at a raw rate D saturate: du/dt = D (1 - u/W), so
after T seconds u = W (1 - exp(-D T / W)). Clark et al. (NSDI 2005) and Liu et
al. (HPDC 2011) have the geometric case, W without bound. Against the sheet's
measured migration (7.1 GiB at 105.3 MiB/s) time and volume agree within 1 % with
one fitted W; the number of rounds does not (12 against 69), because a constant
rate knows no busy and quiet times.

The rule of QEMU ends it: stop when nothing is left, or what is left fits into the
downtime limit at the rate of the last round. Of the limit the part of a downtime
that is always there is taken off before, as Cloud Hypervisor means to; where that
leaves nothing, a machine is stopped that has hardly anything left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, exp
from typing import NamedTuple

from cluster.units import DURATION
from cluster.unsent_memory import Unsent, all_unsent
from node.dirty_rates import NO_READS, Pool
from psp.system_bus import PAGE_BYTES

_GIB = 1 << 30
_LEAST_STEP_BYTES = 2 * _GIB
MOST_STALLED = 0.99
"""The share of time that a guest waits for pages at most."""


HARDLY_ANYTHING_BYTES = 50 * PAGE_BYTES
"""Less than that left is hardly anything, where no limit can be met: Xen's rule for all machines, as remembered."""


class RoundCap(StrEnum):
    """What happens when the rounds, or the time, are used up and the guest still writes too fast."""

    ABORT = "abort"
    STOP = "stop-and-copy"
    POST_COPY = "post-copy"


@dataclass(frozen=True, slots=True)
class PrecopySettings:
    """When to stop. Times in nanoseconds of virtual time."""

    downtime_limit_ns: int
    max_rounds: int
    at_round_cap: RoundCap
    round_ns_per_gib: float
    """Reading and clearing the dirty log between two rounds, for each GiB of the guest."""
    fixed_downtime_ns: float
    """The part of a downtime that no round makes shorter."""
    connection_bytes_per_s: float = 0.0
    """What one of the migration's connections moves at most, 0 for no bound."""
    connections: int = 1
    post_copy_at_once: bool = False
    """Start the VM at the target before any of its memory is there."""
    fault_ns: float = 0.0
    """What a page costs its vCPU that is touched at the target before it came."""
    fresh_miss_share: float = 1.0
    """Of a guest's TLB misses, how many are for a page anywhere in what it reads all over."""
    setup_ns_per_gib: float = 0.0
    """From when both hosts are ready to the first byte, for each GiB of the guest."""
    bandwidth_bytes_per_s: float = 0.0
    """What a migration may take of the network, 0 for no bound."""
    compression_ratio: float = 1.0
    """Bytes on the wire for each of memory."""
    compression_bytes_per_s: float = 0.0
    """Memory that each connection compresses, 0 for no bound."""
    timeout_ns_per_gib: float = 0.0
    """How long the copying may take, 0 for no bound."""
    at_timeout: RoundCap = RoundCap.ABORT
    progress_timeout_ns: int = 0
    """How long no round may end with less left than the best before it, 0 for no bound."""
    downtime_steps: int = 1
    """In how many steps the downtime limit is reached."""
    downtime_step_ns_per_gib: float = 0.0
    """Time from each step to the next."""
    throttle_first: float = 0.0
    """Auto-converge: the share of their time that vCPUs stand still at first, 0 for never."""
    throttle_more: float = 0.1
    throttle_most: float = 0.99
    throttle_after_rounds: int = 2
    """Rounds that dirtied more than ``throttle_trigger`` of what they sent, before each step."""
    throttle_trigger: float = 0.5
    dirty_limit_bytes_per_s: float = 0.0
    """What each vCPU may write at most while it is copied, 0 for no bound."""
    dirty_fault_ns: float = 0.0
    """What a vCPU pays for its first store to a page after the dirty log was read."""
    handler_bytes_per_s: float = 1.0
    """What a migration handler in a guest seals on one vCPU."""
    handler_believes_log: bool = True
    """Whether it takes its hypervisor's word for which pages were written since it sealed them."""
    zero_share: float | None = None
    """Of pages that are only accounted, how many are zero; None for a source that does not look for such."""
    zero_page_wire_bytes: float = 0.0
    """What goes over the wire for one."""
    zero_scan_bytes_per_s: float = 0.0
    """Memory that a source looks through for them."""
    recover_after_ns: int = 0
    """From when a broken link is back to when a post-copy goes on."""
    let_go_within_ns: int = 0
    """How long a guest may take to let its devices go."""

    @property
    def cap_bytes_per_s(self) -> float:
        """What one migration puts on the wire at most, 0 for no bound."""
        caps = [
            self.connections * self.connection_bytes_per_s,
            self.bandwidth_bytes_per_s,
            self.connections * self.compression_bytes_per_s * self.compression_ratio,
        ]
        return min([cap for cap in caps if cap], default=0.0)

    @property
    def limit_can_be_met(self) -> bool:
        """Whether a downtime can be within its limit, however little is left."""
        return self.downtime_limit_ns > self.fixed_downtime_ns

    def handler_cap(self, vcpus: int) -> float:
        """What a handler puts on the wire at most: it has one vCPU at a time, and half of its guest's time at most."""
        most = self.handler_bytes_per_s * min(1.0, vcpus / 2)
        return min(most, self.cap_bytes_per_s or most)

    def handler_share(self, bytes_per_s: float, vcpus: int) -> float:
        """The share of its guest's time that a handler takes for sealing so much."""
        return min(0.5, bytes_per_s / (self.handler_bytes_per_s * vcpus))

    def beside_handler(self, standing_still: float, bytes_per_s: float, vcpus: int) -> float:
        """A share of time for which a guest's vCPUs stand still, with what its handler takes besides."""
        return 1.0 - (1.0 - standing_still) * (1.0 - self.handler_share(bytes_per_s, vcpus))

    def log_share(self, dirty_bytes_per_s: float, pace: float, vcpus: int) -> float:
        """The share of a guest's time that faults for the dirty log take, where it dirties so much at some pace.

        In whole hundredths, so that hosts are not told of less.
        """
        faults_per_s = dirty_bytes_per_s / PAGE_BYTES / max(pace, 1.0 - MOST_STALLED)
        more = faults_per_s * self.dirty_fault_ns * 1e-9 / vcpus
        return int(100 * more / (1.0 + more)) / 100

    def zeros_among(self, accounted_bytes: int) -> int:
        """Bytes of whole pages of zeros among what is only accounted."""
        return int(max(0, accounted_bytes) * (self.zero_share or 0.0)) // PAGE_BYTES * PAGE_BYTES

    def without_zeros(self, size_bytes: int, zero_bytes: int, ratio: float) -> tuple[float, float]:
        """Bytes on the wire for memory some of which is pages of zeros, and at most how many a second (0: no bound).

        All of it has to be looked at.
        """
        wire = (size_bytes - zero_bytes) * ratio + zero_bytes // PAGE_BYTES * self.zero_page_wire_bytes
        caps = [self.cap_bytes_per_s, self.zero_scan_bytes_per_s * wire / max(1, size_bytes)]
        return wire, min([cap for cap in caps if cap], default=0.0)

    def downtime_limit_at(self, passed_ns: int, memory_bytes: int) -> float:
        """The limit when a migration has copied for so long: even steps, the first of them at once, as Nova has them.

        Steps of a machine of less than 2 GiB are as long as of one of 2 GiB. Source: ``downtime_steps`` in
        nova/virt/libvirt/migration.py, and ``live_migration_downtime_delay`` in nova/conf/libvirt.py.
        """
        steps = self.downtime_steps
        if steps <= 1:
            return self.downtime_limit_ns
        step_ns = self.downtime_step_ns_per_gib * max(_LEAST_STEP_BYTES, memory_bytes) / _GIB
        step = steps if step_ns <= 0 else min(steps, int(passed_ns // step_ns))
        first = self.downtime_limit_ns / steps
        return first + (self.downtime_limit_ns - first) * step / steps


class Round(NamedTuple):
    """One round: bytes, and when it began and ended (virtual ns)."""

    size_bytes: int
    began_ns: int
    ended_ns: int
    left_bytes: int
    """Dirty when it ended, what it was to send and did not among it."""
    written_bytes: int
    """Of these, what the guest wrote since the dirty log had been read before."""
    read_ns: int
    """When that was."""

    @property
    def dirty_bytes_per_s(self) -> float:
        """Distinct bytes that it found written, over the time for which they were logged."""
        return self.written_bytes * 1e9 / max(1, self.ended_ns - self.read_ns)


class _Touched(NamedTuple):
    """Bytes that are touched all over, written or read, and how many a second in whole pages."""

    working_set_bytes: float
    touched_bytes_per_s: float


class Verdict(StrEnum):
    """What follows a round."""

    NEXT = "next round"
    STOP = "stop and copy"
    GIVE_UP = "round cap"
    STALLED = "no progress"
    GO_AHEAD = "post-copy"


_AT_CAP = {RoundCap.ABORT: Verdict.GIVE_UP, RoundCap.STOP: Verdict.STOP, RoundCap.POST_COPY: Verdict.GO_AHEAD}


_NEXT, _STOP = Verdict.NEXT, Verdict.STOP
"""At hand: every move comes by them."""
_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""


class Precopy:
    """One migration's rounds. The caller moves the bytes and says when they are through."""

    # What most moves never change stands here.
    _pools: tuple[Pool, ...] = ()
    _is_written = False
    """Whether the guest has written anything, or will."""
    _sends: list[float] | None = None
    """Of each pool, what the present round sends; None for the first, which sends all memory."""
    _unsent: Unsent | None = None
    """Of a round that was broken off, or did not begin."""
    _zero_bytes = 0
    """Of the present round."""
    _carried: tuple[float, int] | None = None
    """What the last round that sent anything was to the network, and its time: what is left will not be zeros."""
    _carried_before: tuple[float, int] | None = None
    """The same without a round that was broken off."""
    _hot_rounds = 0
    reads = NO_READS
    """What the guest read all over when it was stopped, to run ahead of its memory."""
    throttle = 0.0
    """The share of their time that the vCPUs are to stand still."""

    def __init__(self, memory_bytes: int, pools: Sequence[Pool], settings: PrecopySettings, now_ns: int) -> None:
        self.rounds: list[Round] = []
        self.memory_bytes = memory_bytes
        self._settings = settings
        self._dirty: list[float] = []
        """Bytes of each pool written since the log was read last."""
        self._looked_ns = self._began_ns = self._first_ns = now_ns
        self._size_bytes = memory_bytes
        if pools:
            self._pools = tuple(pools)
            for _, bytes_per_s in pools:
                self._dirty.append(0.0)
                if bytes_per_s:
                    self._is_written = True

    @property
    def began_ns(self) -> int:
        """When the present round began."""
        return self._began_ns

    @property
    def began_copying_ns(self) -> int:
        """When its first round could begin."""
        return self._first_ns

    @property
    def size_bytes(self) -> int:
        """What the present round sends."""
        return self._size_bytes

    @property
    def sent_bytes(self) -> int:
        """What the rounds so far have sent."""
        return sum(one.size_bytes for one in self.rounds)

    @property
    def between_rounds_ns(self) -> int:
        """How long the dirty log takes between two rounds."""
        return round(self._settings.round_ns_per_gib * self.memory_bytes / _GIB)

    def begin(self, now_ns: int, zero_bytes: int = 0) -> int:
        """The present round's bytes start to move: how many; pages of zeros among them hardly move at all."""
        self._began_ns, self._zero_bytes = now_ns, zero_bytes
        return self._size_bytes

    def restate(self, pools: Sequence[Pool], now_ns: int) -> None:
        """The guest writes otherwise from now on, into as many pools; what it has written stays written."""
        self.dirty_bytes(now_ns)
        self._pools = tuple(pools)
        self._is_written |= any(bytes_per_s for _, bytes_per_s in pools)

    def dirty_bytes(self, now_ns: int) -> int:
        """Distinct bytes written since the log was read last, or left of what was to be sent; at most all memory."""
        looked_ns, self._looked_ns = self._looked_ns, now_ns
        if self._is_written:
            passed_s, dirty = (now_ns - looked_ns) * 1e-9, self._dirty
            for number, (size, bytes_per_s) in enumerate(self._pools):
                before = dirty[number]
                dirty[number] = max(before, size - (size - before) * exp(-bytes_per_s * passed_s / size))
        elif self._unsent is None:
            return 0
        dirty_bytes = ceil(sum(self._dirty)) if self._unsent is None else round(self._left().total)
        most_bytes = self.memory_bytes
        return dirty_bytes if dirty_bytes < most_bytes else most_bytes

    @property
    def _written_bytes(self) -> int:
        """Distinct bytes written since the log was read last, as of the last look."""
        return min(self.memory_bytes, ceil(sum(self._dirty)))

    @property
    def _read_ns(self) -> int:
        """When the log was read last."""
        return self.rounds[-1].ended_ns if self.rounds else self._first_ns

    def _left(self) -> Unsent:
        """Where what is left lies."""
        unsent = self._unsent
        if unsent is None:
            unsent = Unsent((0.0,) * len(self._pools)) if self.rounds else all_unsent(self.memory_bytes, self._pools)
        return unsent.with_written(self._pools, self._dirty)

    def stalled_while(
        self, missing_bytes: int, took_ns: int, vcpus: int, touched_ns: float = 0.0
    ) -> tuple[float, float]:
        """(pages, share): what post-copy's guest touches before it came, and the share of time that it waits for that.

        Who waits touches less: the share is the one that the pages touched in the rest of the time lead to.
        """
        least, most = 0.0, MOST_STALLED
        for _ in range(40):
            share = (least + most) / 2
            faults = self.faults_while(missing_bytes, took_ns, 1.0 - share, touched_ns=touched_ns)
            waits_ns = faults * self._settings.fault_ns
            if waits_ns > share * took_ns * vcpus:
                least = share
            else:
                most = share
        faults = self.faults_while(missing_bytes, took_ns, 1.0 - most, touched_ns=touched_ns)
        return faults, most if most > 1e-9 else 0.0

    def missed_pages(self, missing_bytes: int, touched_ns: float) -> float:
        """Pages that have not come and that the guest would touch, after it has run for so long at its full pace."""
        return sum([
            share * pool.working_set_bytes / PAGE_BYTES * _untouched(pool, touched_ns)
            for pool, share in self._missing_of(missing_bytes) if pool.touched_bytes_per_s
        ])  # fmt: skip

    def _missing_of(self, missing_bytes: int) -> list[tuple[_Touched, float]]:
        """Each pool, and the share of it that is missing where so much is: it comes evenly from all that was left.

        What is read alone lies in memory that nobody writes, of which all of one kind is left alike.
        """
        left, each = self._left(), self._settings.fresh_miss_share
        missing = min(1.0, missing_bytes / max(1.0, left.total))
        read = self.reads.of_pools or (0.0,) * len(self._pools)
        found = [
            (_Touched(size, written + each * more), missing * min(1.0, unsent / size))
            for (size, written), unsent, more in zip(self._pools, left.of_pools, read, strict=True)
        ]
        if self.reads.beside and left.of_rest:
            rest = self.memory_bytes - sum([pool.working_set_bytes for pool in self._pools])
            share = missing * min(1.0, left.of_rest / rest)
            # Sets that are more than that lie over one another: there is no page twice to wait for.
            fits = min(1.0, rest / sum([size for size, _ in self.reads.beside]))
            found += [(_Touched(size * fits, each * more), share) for size, more in self.reads.beside]
        return found

    def faults_while(
        self, missing_bytes: int, took_ns: int, pace: float = 1.0, until_ns: int | None = None, touched_ns: float = 0.0
    ) -> float:
        """Pages that the guest touches before they come, while what is missing comes in an even stream.

        Of a pool of W that is touched, written or read, at a rate D a page is first touched at time t with density
        (D/W) exp(-D t / W), and is missing still with probability (1 - t/T) times the missing share of the pool. That
        is summed up to the end of the stream, or for so long. What it has touched in ``touched_ns`` at its full pace
        before is there.
        """
        took_s = took_ns * 1e-9
        passed = 1.0 if until_ns is None else min(1.0, until_ns / took_ns)
        faults = 0.0
        for pool, share in self._missing_of(missing_bytes):
            x = pace * pool.touched_bytes_per_s * took_s / pool.working_set_bytes
            y = x * passed
            gone = exp(-y)
            touched = 1.0 - gone - (1.0 - gone * (1.0 + y)) / x if x else 0.0
            faults += share * pool.working_set_bytes / PAGE_BYTES * touched * _untouched(pool, touched_ns)
        return faults

    def break_off(self, sent_bytes: int, now_ns: int) -> None:
        """The present round goes no further: what it did not send is left, besides what was written meanwhile."""
        sent_bytes = min(sent_bytes, self._size_bytes)
        self._carried_before = self._carried
        self._leave(sent_bytes, now_ns)
        began_ns = self._began_ns if sent_bytes else now_ns  # It had not begun.
        left_bytes = self.dirty_bytes(now_ns)
        self.rounds.append(Round(sent_bytes, began_ns, now_ns, left_bytes, self._written_bytes, self._read_ns))

    def hold_back(self, size_bytes: int, now_ns: int) -> None:
        """Of the round that was broken off so much more has not been sent."""
        last = self.rounds.pop()
        sent_bytes = max(0, last.size_bytes - size_bytes)
        self._leave(sent_bytes, last.ended_ns)
        self.rounds.append(last._replace(size_bytes=sent_bytes, left_bytes=self.dirty_bytes(now_ns)))

    def _leave(self, sent_bytes: int, ended_ns: int) -> None:
        sends = self._sends
        left = all_unsent(self.memory_bytes, self._pools) if sends is None else Unsent(tuple(sends))
        sent = sent_bytes / self._size_bytes
        self._unsent = left.part(1.0 - sent)
        took_ns = max(1, ended_ns - self._began_ns)
        self._carried = (sent * self._worth_bytes, took_ns) if sent_bytes else self._carried_before

    @property
    def how_far(self) -> str:
        """How many rounds there were, and why they lead nowhere where they cannot."""
        settings, rounds = self._settings, f"after {len(self.rounds)} rounds"
        if settings.limit_can_be_met:
            return rounds
        fixed, limit = DURATION.format(round(settings.fixed_downtime_ns)), DURATION.format(settings.downtime_limit_ns)
        return f"{rounds}: {fixed} of each downtime are fixed, and {limit} the limit"

    def unsent_zeros(self, zero_bytes: int) -> int:
        """Bytes of pages of zeros, of so many in all memory, that a first round did not send."""
        if self._unsent is None or self._sends is not None:
            return 0
        # Nobody has written those, so that they lie in no pool.
        share = 1.0 - self.rounds[-1].size_bytes / self._size_bytes
        return int(min(zero_bytes * share, self._unsent.of_rest)) // PAGE_BYTES * PAGE_BYTES

    @property
    def _worth_bytes(self) -> float:
        """What the present round is to the network."""
        if not self._zero_bytes:
            return float(self._size_bytes)
        return self._settings.without_zeros(self._size_bytes, self._zero_bytes, 1.0)[0]

    @property
    def fixed_downtime_ns(self) -> int:
        """What no round makes shorter."""
        return round(self._settings.fixed_downtime_ns)

    @property
    def expected_downtime_ns(self) -> int | None:
        """As it would be if the last round had been the last: what was left, at the rate so far, and the fixed part.

        None where nothing was sent yet, at no rate.
        """
        if self._carried is None:
            return None
        carried_bytes, took_ns = self._carried
        return round(self._settings.fixed_downtime_ns + self.rounds[-1].left_bytes * took_ns / carried_bytes)

    def _converge(self, left: int, carried_bytes: float) -> None:
        """Auto-converge: rounds that dirty too much of what they sent slow the guest down, step by step."""
        settings = self._settings
        if left <= settings.throttle_trigger * carried_bytes:
            return
        self._hot_rounds += 1
        if self._hot_rounds >= settings.throttle_after_rounds:
            self._hot_rounds = 0
            more = self.throttle + settings.throttle_more if self.throttle else settings.throttle_first
            self.throttle = min(settings.throttle_most, more)

    @property
    def _best_ns(self) -> int:
        """When a round ended last with less left than each before it."""
        least, best_ns = self.memory_bytes, self._first_ns
        for one in self.rounds:
            if one.left_bytes < least:
                least, best_ns = one.left_bytes, one.ended_ns
        return best_ns

    def round_done(self, now_ns: int) -> Verdict:
        """The present round is through: what follows. After NEXT, ``size_bytes`` is what the next one sends."""
        settings, rounds, began_ns = self._settings, self.rounds, self._began_ns
        took_ns = now_ns - began_ns or 1
        left = self.dirty_bytes(now_ns)
        written_bytes = left if self._unsent is None else self._written_bytes
        carried_bytes = self._worth_bytes if self._zero_bytes else float(self._size_bytes)
        self._carried = carried_bytes, took_ns
        read_ns = rounds[-1].ended_ns if rounds else self._first_ns
        rounds.append(_new(Round, (self._size_bytes, began_ns, now_ns, left, written_bytes, read_ns)))
        if left < HARDLY_ANYTHING_BYTES and not (left and settings.limit_can_be_met):
            return _STOP
        limit_ns: float = settings.downtime_limit_ns
        if settings.downtime_steps > 1:
            limit_ns = settings.downtime_limit_at(now_ns - self._first_ns, self.memory_bytes)
        if left * took_ns <= (limit_ns - settings.fixed_downtime_ns) * carried_bytes:
            return _STOP
        if len(rounds) >= settings.max_rounds:
            return _AT_CAP[settings.at_round_cap]
        patience_ns = settings.progress_timeout_ns
        if patience_ns and now_ns - self._best_ns > patience_ns:
            return Verdict.STALLED
        if settings.throttle_first:
            self._converge(left, carried_bytes)
        self._size_bytes, self._sends = left, self._dirty
        self._dirty = [0.0] * len(self._pools)
        return _NEXT


def _untouched(pool: _Touched, touched_ns: float) -> float:
    """The share of a pool that was not touched in a time."""
    return exp(-pool.touched_bytes_per_s * touched_ns * 1e-9 / pool.working_set_bytes)
