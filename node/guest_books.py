"""A VM's books when it changes hosts: what the laboratory has measured of it so far.

No part of the VM. What its time went into is worked out at the prices of the
host it leaves, because the next one may have other cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from node.disk_books import DiskBooks
from node.event_log import ChainEnd
from node.guest import Guest
from node.mechanism import Mechanism, with_all
from node.network_books import NetworkBooks
from node.phase_cost import PhaseCost
from node.svsm_use import SvsmUse
from node.vcpu import Vcpu

N = TypeVar("N", int, float)
_LOADED_LATENCY, _CORE_WAIT, _SMT, _LLC = (
    Mechanism.LOADED_LATENCY, Mechanism.CORE_WAIT, Mechanism.SMT, Mechanism.LLC,
)  # fmt: skip


class GuestBooks(NamedTuple):
    """Figures of one VM; lists of lists hold, per vCPU, demands by number with what is not zero."""

    ordered_ns: int
    running_ns: int
    launch_digest: str
    psp_wait_ns: int
    psp_service_ns: int
    operation_ns: int
    operations: int
    faults: int
    bytes_read: int
    bytes_written: int
    bytes_bounced: int
    copies: int
    disk: tuple[int | float, ...]
    """Of a VM that used its disk, else empty."""
    lost_ns: dict[Mechanism, float]
    """What is not zero. Once packed, by name."""
    row_ns: dict[str, float]
    elapsed_ns: list[int]
    instructions: list[list[tuple[int, float]]]
    phases: list[list[tuple[int, int]]]
    chain: tuple[int, int, bytes]
    """Where its digest chain stands: bucket, records, value."""
    svsm: tuple[int, ...] = ()
    """Calls and time of its SVSM, if it has one."""
    network: tuple[int, ...] = ()
    """What went through its network card, if it has one."""

    @classmethod
    def of(cls, guest: Guest, chain: ChainEnd) -> GuestBooks:
        """The books of a VM that leaves; ``chain`` is where its digest chain stands."""
        if guest.newcomer is not None:
            return guest.newcomer.books(chain)
        row_ns = {row: ns for row, ns in sorted(guest.row_ns.items()) if ns} if guest.row_ns else {}
        books = (
            guest.ordered_ns, guest.running_ns, guest.launch_digest, guest.psp_wait_ns, guest.psp_service_ns,
            guest.operation_ns, guest.operations, guest.faults, guest.bytes_read, guest.bytes_written,
            guest.bytes_bounced, guest.copies, guest.disk.body() if guest.disk else (),
            _not_zero(mechanism_ns(guest)), row_ns, *_of_vcpus(guest.vcpus), chain,
            () if guest.svsm is None else (guest.svsm.calls, guest.svsm.time_ns),
            () if guest.network is None else astuple(guest.network),
        )  # fmt: skip
        return tuple.__new__(cls, books)

    def after(self, vcpus: Sequence[Vcpu], costs: Mapping[int, Sequence[PhaseCost]], chain: ChainEnd) -> GuestBooks:
        """The same books when these vCPUs have computed, at these prices, and done nothing else."""
        times = _not_zero(_spent_ns(self.lost_ns, vcpus, costs))
        books = (*self[:_TIMES], times, self.row_ns, *_of_vcpus(vcpus), chain, self.svsm, self.network)
        return tuple.__new__(GuestBooks, books)

    def at(self, chain: ChainEnd) -> GuestBooks:
        """The same books with the digest chain elsewhere."""
        return tuple.__new__(GuestBooks, (*self[:_CHAIN], chain, *self[_CHAIN + 1 :]))

    def body(self) -> tuple[object, ...]:
        """As msgpack-able values."""
        return self

    @classmethod
    def parse(cls, body: tuple[Any, ...]) -> GuestBooks:
        """The books back from their values."""
        return body if isinstance(body, GuestBooks) else cls(*body)

    def open(self, guest: Guest) -> None:
        """Go on with these books for a VM that came, but for those of its vCPUs."""
        (
            guest.ordered_ns, guest.running_ns, guest.launch_digest, psp_wait_ns, psp_service_ns,
            guest.operation_ns, guest.operations, guest.faults, guest.bytes_read, guest.bytes_written,
            guest.bytes_bounced, guest.copies, disk, lost_ns, row_ns, _, _, _, _, svsm, network,
        ) = self  # fmt: skip
        # Its new host's security processor has worked for it already.
        if psp_wait_ns or psp_service_ns:
            guest.psp_wait_ns += psp_wait_ns
            guest.psp_service_ns += psp_service_ns
        if svsm:
            guest.svsm = SvsmUse(*svsm)
        if network or guest.network is not None:
            guest.network = NetworkBooks(*network) if network else None
        if disk:
            guest.disk = DiskBooks(*disk)  # type: ignore[arg-type]  # as they were packed
        guest.lost_ns = with_all(lost_ns)
        guest.row_ns = dict(row_ns)

    def open_vcpus(self, vcpus: Sequence[Vcpu]) -> None:
        """Go on with those of the vCPUs."""
        for vcpu, elapsed, retired_there, phases_there in zip(
            vcpus, self.elapsed_ns, self.instructions, self.phases, strict=True
        ):
            vcpu.elapsed_ns = elapsed
            if retired_there or phases_there:
                vcpu.moved_instructions, vcpu.phases = dict(retired_there), dict(phases_there)


_TIMES, _CHAIN = map(GuestBooks._fields.index, ("lost_ns", "chain"))


def mechanism_ns(guest: Guest) -> dict[Mechanism, float]:
    """Time of a VM by mechanism, summed over its vCPUs."""
    return _spent_ns(guest.lost_ns, guest.vcpus, guest.phase_costs)


def _spent_ns(
    lost_ns: dict[Mechanism, float], vcpus: Sequence[Vcpu], phase_costs: Mapping[int, Sequence[PhaseCost]]
) -> dict[Mechanism, float]:
    times = with_all(lost_ns)
    for vcpu in vcpus:
        if not vcpu.instructions:
            continue  # Who computed nothing here lost nothing to others.
        times[_LOADED_LATENCY] += vcpu.loaded_ns
        times[_CORE_WAIT] += vcpu.core_wait_ns
        times[_SMT] += vcpu.smt_ns
        times[_LLC] += vcpu.llc_ns
        costs = phase_costs[vcpu.index]
        for number, instructions in _by_number(vcpu.instructions):
            for mechanism, ns in costs[number].felt:
                times[mechanism] += instructions * ns
    return times


def _of_vcpus(vcpus: Sequence[Vcpu]) -> tuple[list[int], list[list[tuple[int, float]]], list[list[tuple[int, int]]]]:
    elapsed_ns, instructions, phases = [], [], []
    for vcpu in vcpus:
        elapsed_ns.append(vcpu.elapsed_ns)
        instructions.append(retired(vcpu))
        phases.append(_by_number(vcpu.phases) if vcpu.phases else [])
    return elapsed_ns, instructions, phases


def _not_zero(times: dict[Mechanism, float]) -> dict[Mechanism, float]:
    return dict(filter(itemgetter(1), times.items()))


def _by_number(figures: Mapping[int, N]) -> list[tuple[int, N]]:
    """What is not zero, in the order of the numbers: sums of it are the same whatever was done first."""
    return [(number, figure) for number, figure in sorted(figures.items()) if figure]


def retired(vcpu: Vcpu) -> list[tuple[int, float]]:
    """Instructions of a vCPU by number of the demand, on this host and those before, of demands that it made."""
    if not vcpu.instructions:
        return _by_number(vcpu.moved_instructions) if vcpu.moved_instructions else []
    found = dict(vcpu.moved_instructions)
    for number, here in vcpu.instructions.items():
        found[number] = here + found.get(number, 0.0)
    return _by_number(found)
