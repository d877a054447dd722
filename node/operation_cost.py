"""What operations cost in virtual time, from the cost table.

A batch's time is known before it takes effect. For a guest it is split into
what a plain VM would pay and what its generation adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from node import operations as op
from node.boot_phases import BOOT_WORK
from node.data_cache import LINE_BYTES
from node.device_window import DEVICES_GPA
from node.generation import CAPABILITIES, Generation
from node.host_kind import HostKind
from node.mechanism import Mechanism
from node.phase_cost import RMP_CHECKED, GenerationCost
from node.svsm_operations import GUEST_WORK
from psp.commands import COMMANDS, LegacyCommand, SnpCommand, measured_bytes
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from psp.tsm.tio_buffers import SpdmOrder

_UPKEEP = "upkeep.misses_per_access"
PSC_ENTRIES = 253
"""Entries of one page state change request (GHCB specification, section 4.1.6)."""

_KIB = 1024
Part = tuple[Mechanism, float, str]
"""Nanoseconds of an operation, and the row with a sweep range that they are in proportion to; empty for none."""
_READ, _WRITE = op.Read, op.Write
_OPERATIONS, _ENCRYPTION = Mechanism.OPERATIONS, Mechanism.ENCRYPTION
"""An enumeration looks its members up at ten times the price of a module's name; every batch comes by here."""
_MOST_TIMES = 1 << 20
_CONFIG_WORD_BYTES = 4


class GuestOperationCost:
    """Prices of a guest's operations under its generation, on hosts of one kind."""

    def __init__(self, generation: Generation, costs: Mapping[str, float], kind: HostKind) -> None:
        own = GenerationCost.of(generation, costs, kind)
        self._costs = costs
        self._plain_byte_ns = 1e9 / costs["dram.copy_bytes_per_s"]
        self._private_ns = own.encryption_ns, self._plain_byte_ns * (1.0 / own.bandwidth_share - 1.0)
        self._shared_ns = own.shared_encryption_ns, self._plain_byte_ns * (1.0 / own.shared_bandwidth_share - 1.0)
        self._exit_ns = own.exit_ns
        self._vmgexit_extra_ns = own.vmgexit_extra_ns
        self._call_ns = own.call_ns
        self._copy_byte_ns = costs["bounce.copy_ns_per_kib"] / _KIB
        self._misses = costs[_UPKEEP]
        self._timer_exits = costs["halt.exits_per_request"]
        self._poll_ns, self._wake_ns = costs["halt.poll_ns"], costs["halt.wake_ns"]
        self._by_ghcb = CAPABILITIES[generation].encrypted_registers
        self._checked = generation in RMP_CHECKED
        self._update_ns = costs["rmp.update_ns"]
        self._disk_exits = costs["disk.exits_per_request"]
        self._disk_ns = {op.BlockRead: costs["disk.read_ns"], op.BlockWrite: costs["disk.write_ns"]}
        self._disk_byte_ns = {
            op.BlockRead: 1e9 / costs["disk.bytes_per_s"], op.BlockWrite: 1e9 / costs["disk.write_bytes_per_s"],
        }  # fmt: skip
        self._table: dict[type, Callable[..., tuple[Part, ...]]] = {
            op.PValidate: self._pvalidate,
            op.RmpAdjust: self._rmpadjust,
            op.RmpQuery: lambda _: ((Mechanism.ACCEPTANCE, costs["rmp.query_ns"], "rmp.query_ns"),),
            op.PageStateChange: self._page_state_change,
            # What the hypervisor does in an exit is charged when it is done; an intercepted CPUID of a guest with
            # encrypted registers costs nothing itself, for the round trip that its handler makes has the figure.
            op.VmgExit: self._vmgexit,
            op.Cpuid: lambda _: (
                () if CAPABILITIES[generation].encrypted_registers else ((Mechanism.OPERATIONS, self._exit_ns, ""),)
            ),
            # Those of cards that were given to the guest do not exit; of others as CPUID: where registers are
            # encrypted the handler's round trip has the figure.
            op.MmioLoad: lambda one: self._register(one, "pcie.load_ns"),
            op.MmioStore: lambda one: self._register(one, "pcie.store_ns"),
            op.Rdmsr: self._intercepted,
            op.Wrmsr: self._intercepted,
            op.PortIn: self._port,
            op.PortOut: self._port,
            op.PortInString: self._port,
            op.PortOutString: self._port,
            op.WriteBackCaches: self._intercepted,
            op.TimedRead: lambda _: ((Mechanism.OPERATIONS, costs["dram.latency_ns"], ""),),
            op.Clflush: lambda one: (
                (Mechanism.OPERATIONS, _lines(one.length) * costs["cache.clflush_ns"], "cache.clflush_ns"),
            ),
            op.BlockRead: self._block,
            op.BlockWrite: self._block,
            op.GuestWork: self._work,
        }
        self._at_latency: dict[type, Callable[..., tuple[Mechanism, float, float]]] = {
            op.Copy: self._copy, op.UpkeepRead: self._upkeep, op.UpkeepWrite: self._upkeep,
        }  # fmt: skip
        """What makes accesses that a plain VM does not: mechanism, nanoseconds of the accesses, and what else."""

    def price(
        self,
        batch: tuple[op.GuestOperation, ...],
        latency_ns: float,
        lost_ns: dict[Mechanism, float],
        row_ns: dict[str, float] | None = None,
    ) -> int:
        """Nanoseconds of a batch at the present DRAM latency, added to ``lost_ns`` by mechanism; 0 if it is free.

        What costs anything takes a nanosecond at least. ``row_ns`` gets what is in proportion to rows with a sweep
        range, but for what the cipher adds to loads and stores.
        """
        if len(batch) == 1:
            # As most are: a load or a store.
            only = batch[0]
            kind = type(only)
            if kind is _READ or kind is _WRITE:
                size = max(only.length, 0) if kind is _READ else len(only.data)  # type: ignore[union-attr]  # the two
                access_ns, byte_ns = self._private_ns if only.private else self._shared_ns  # type: ignore[union-attr]
                plain = latency_ns + size * self._plain_byte_ns
                added = access_ns + size * byte_ns
                lost_ns[_OPERATIONS] += plain
                lost_ns[_ENCRYPTION] += added
                whole = plain + added
                return max(1, round(whole)) if whole else 0
        plain = added = other = 0.0
        for one in batch:
            if type(one) is op.Read:
                size, private = one.length, one.private
                size = max(size, 0)
            elif type(one) is op.Write:
                size, private = len(one.data), one.private
            elif type(one) is op.VirtualWrite:
                # As if private: whether a page is, its guest's tables say, and prices are known before.
                size, private = len(one.data), True
            elif type(one) is op.Clear:
                size, private = max(0, one.length), one.private
            elif type(one) is op.VirtualRead or type(one) is op.Fetch:
                size, private = max(0, one.length), True
            elif (at_latency := self._at_latency.get(type(one))) is not None:
                mechanism, access_ns, rest_ns = at_latency(one, latency_ns)
                lost_ns[mechanism] += access_ns + rest_ns
                other += access_ns + rest_ns
                if row_ns is not None:
                    row_ns[_UPKEEP] = row_ns.get(_UPKEEP, 0.0) + access_ns
                continue
            else:
                # What a guest may not execute raises #UD, which costs nothing that the table knows.
                priced = self._table.get(type(one))
                for mechanism, part_ns, row in priced(one) if priced else ():
                    lost_ns[mechanism] += part_ns
                    other += part_ns
                    if row and row_ns is not None:
                        row_ns[row] = row_ns.get(row, 0.0) + part_ns
                continue
            plain += latency_ns + size * self._plain_byte_ns
            access_ns, byte_ns = self._private_ns if private else self._shared_ns
            added += access_ns + size * byte_ns
        lost_ns[Mechanism.OPERATIONS] += plain
        lost_ns[Mechanism.ENCRYPTION] += added
        whole = plain + added + other
        return max(1, round(whole)) if whole else 0

    def _copy(self, one: op.Copy, latency_ns: float) -> tuple[Mechanism, float, float]:
        """A load and a store to begin with, then the rate of a copy, which is a load and a store of each byte."""
        size = max(0, one.length)
        privates = (one.source_private, one.target_private)
        ends = [self._private_ns if private else self._shared_ns for private in privates]
        access_ns = sum([latency_ns + access for access, _ in ends], 0.0)
        byte_ns = self._copy_byte_ns + max([byte for _, byte in ends])
        return Mechanism.BOUNCE, self._misses * access_ns, size * byte_ns

    def _upkeep(self, one: op.UpkeepRead | op.UpkeepWrite, latency_ns: float) -> tuple[Mechanism, float, float]:
        if one.paid:
            return one.mechanism, 0.0, 0.0
        size = max(0, one.length) if isinstance(one, op.UpkeepRead) else len(one.data)
        access_ns, byte_ns = self._private_ns if one.private else self._shared_ns
        return one.mechanism, self._misses * (latency_ns + access_ns + size * (self._plain_byte_ns + byte_ns)), 0.0

    def _vmgexit(self, one: op.VmgExit) -> tuple[Part, ...]:
        if not self._by_ghcb:
            return ()
        if one.instead:
            return (Mechanism.OPERATIONS, self._exit_ns, ""), (Mechanism.VMGEXIT, self._vmgexit_extra_ns, "")
        return ((Mechanism.VMGEXIT, self._call_ns, ""),)

    def _work(self, one: op.GuestWork) -> tuple[Part, ...]:
        if one.cost not in GUEST_WORK:
            return ()
        times = min(max(0, one.times), _MOST_TIMES)
        mechanism = Mechanism.BOOT if one.cost in BOOT_WORK else _OF_WORK.get(one.cost, Mechanism.OPERATIONS)
        own = (mechanism, times * self._costs[one.cost], one.cost)
        if one.cost != "disk.crypt_request_ns":
            return (own,)
        # Encryption has a thread of its own, which is woken for each request and wakes the one that waits.
        exits = times * self._costs["disk.crypt_exits_per_request"]
        return own, (Mechanism.VMGEXIT, exits * self._vmgexit_extra_ns, "disk.crypt_exits_per_request")

    def _pvalidate(self, one: op.PValidate) -> tuple[Part, ...]:
        pages = max(0, one.length) // (LARGE_PAGE_BYTES if one.large else PAGE_BYTES)
        row = "rmp.pvalidate_large_ns" if one.large else "rmp.pvalidate_ns"
        return ((Mechanism.ACCEPTANCE, pages * self._costs[row], row),)

    def _rmpadjust(self, one: op.RmpAdjust) -> tuple[Part, ...]:
        pages = max(0, one.length) // (LARGE_PAGE_BYTES if one.large else PAGE_BYTES)
        row = "rmp.adjust_large_ns" if one.large else "rmp.adjust_ns"
        return ((Mechanism.ACCEPTANCE, pages * self._costs[row], row),)

    def _page_state_change(self, one: op.PageStateChange) -> tuple[Part, ...]:
        if not self._checked:
            return ((Mechanism.VMGEXIT, self._call_ns, ""),)
        unit = PAGE_BYTES if (one.gpa | one.length) % LARGE_PAGE_BYTES else LARGE_PAGE_BYTES
        pages = max(0, -(-one.length // unit))
        calls = -(-pages // PSC_ENTRIES)
        return (
            (Mechanism.VMGEXIT, calls * self._call_ns, ""),
            (Mechanism.ACCEPTANCE, pages * self._update_ns, "rmp.update_ns"),
        )

    def _intercepted(self, _: op.GuestOperation) -> tuple[Part, ...]:
        return () if self._by_ghcb else ((Mechanism.OPERATIONS, self._exit_ns, ""),)

    def _port(self, _: op.GuestOperation) -> tuple[Part, ...]:
        """Where registers are encrypted what a port takes beyond another exit, which its handler makes."""
        port_ns = self._costs["core.port_ns"]
        return ((Mechanism.OPERATIONS, max(0.0, port_ns - self._exit_ns) if self._by_ghcb else port_ns, ""),)

    def _register(self, one: op.MmioLoad | op.MmioStore, row: str) -> tuple[Part, ...]:
        if one.private or one.gpa >= DEVICES_GPA:
            return ((Mechanism.OPERATIONS, self._costs[row], row),)
        return self._intercepted(one)

    def halt(
        self,
        lost_ns: dict[Mechanism, float],
        slept_ns: int = 0,
        *,
        timer: bool = False,
        row_ns: dict[str, float] | None = None,
    ) -> int:
        """Nanoseconds that a vCPU needs to go on after it was halted, added as in ``price``.

        HLT exits, and so does setting a timer before it. The host polls for a while before it gives the thread up.
        """
        exits = self._timer_exits if timer else 1.0
        woken_ns = self._wake_ns if slept_ns > self._poll_ns else 0.0
        plain = exits * self._exit_ns + woken_ns
        added = exits * self._vmgexit_extra_ns
        if row_ns is not None:
            row_ns["halt.wake_ns"] = row_ns.get("halt.wake_ns", 0.0) + woken_ns
            if timer:
                by_exits = plain - woken_ns + added
                row_ns["halt.exits_per_request"] = row_ns.get("halt.exits_per_request", 0.0) + by_exits
        lost_ns[Mechanism.OPERATIONS] += plain
        lost_ns[Mechanism.VMGEXIT] += added
        return max(1, round(plain + added))

    def disk_ns(self, one: op.BlockRead | op.BlockWrite) -> float:
        """Nanoseconds of one request to the disk."""
        return sum([part_ns for _, part_ns, _ in self._block(one)], 0.0)

    def _block(self, one: op.BlockRead | op.BlockWrite) -> tuple[Part, ...]:
        # The figure of a small request has its one block in it.
        more_bytes = max(0, one.blocks - 1) * op.BLOCK_BYTES
        device_ns = self._disk_ns[type(one)] + more_bytes * self._disk_byte_ns[type(one)]
        return (
            (Mechanism.OPERATIONS, device_ns, ""),
            (Mechanism.VMGEXIT, self._disk_exits * self._vmgexit_extra_ns, "disk.exits_per_request"),
        )


class HostOperationCost:
    """Prices of a hypervisor's operations. The security processor's are served in its own queue."""

    def __init__(self, costs: Mapping[str, float], kind: HostKind | None = None) -> None:
        # Stores of the host are checked too where an RMP is in use, once for each page.
        check_ns = costs["rmp.write_check_ns"] if kind is not None and kind.rmp else 0.0
        byte_ns = 1e9 / costs["dram.copy_bytes_per_s"]
        update_ns = costs["rmp.update_ns"]
        self._costs = costs
        self._table: dict[type, Callable[..., float]] = {
            op.HostRead: lambda one: one.length * byte_ns,
            op.HostWrite: lambda one: len(one.data) * byte_ns + _pages(len(one.data)) * check_ns,
            # Memory of an SME guest is cleared when it comes and when it goes; a kernel does so once.
            op.HostClear: lambda one: (
                0.0 if one.encrypted else one.length * byte_ns + _pages(one.length) * check_ns
            ),
            op.HostWork: lambda one: costs[one.cost],
            op.RmpUpdate: lambda one: update_ns * (one.length // (LARGE_PAGE_BYTES if one.entry.large else PAGE_BYTES)),
            op.PSmash: lambda _: costs["rmp.psmash_ns"],
            op.RmpRead: lambda _: costs["rmp.read_ns"],
            op.Wbinvd: lambda _: costs["host.wbinvd_ns"],
            op.MmioRead: lambda _: costs["pcie.load_ns"],
            op.MmioWrite: lambda _: costs["pcie.store_ns"],
            op.ConfigRead: lambda _: costs["pcie.config_ns"],
            op.ConfigWrite: lambda _: costs["pcie.config_ns"],
            op.ConfigIn: lambda one: 2 * max(0, one.words) * costs["pcie.config_ns"],
            op.ConfigOut: lambda one: len(one.data) // _CONFIG_WORD_BYTES * costs["pcie.config_ns"],
            op.DeviceRead: lambda one: max(0, one.length) * byte_ns,
            op.DeviceWrite: lambda one: len(one.data) * byte_ns,
            op.HostClflush: lambda one: _lines(one.length) * costs["host.clflush_ns"],
            op.HostTimedRead: lambda _: costs["dram.latency_ns"],
            op.Invd: lambda _: costs["host.invd_ns"],
            op.VmKick: lambda _: costs["core.exit_ns"],
            op.AgentCall: lambda _: costs["psp.guest_request_ns"],
            op.HandlerCall: lambda _: costs["psp.guest_request_ns"],
            op.VmPageFlush: lambda _: _lines(PAGE_BYTES) * costs["host.clflush_ns"],
        }
        # To enter another VMPL is a round trip's second half, and what comes on top of that.
        self._in_exit: dict[type, Callable[..., float]] = {
            **{kind: self._table[kind] for kind in (op.RmpUpdate, op.PSmash)},
            op.VmRun: lambda _: costs["vmpl.switch_extra_ns"],
        }
        legacy_ns_per_kib = costs["psp.legacy_launch_update_ns_per_kib"]
        self._psp_table: dict[int, Callable[[bytes], float]] = {
            SnpCommand.LAUNCH_UPDATE: lambda _: costs["psp.launch_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            SnpCommand.GUEST_REQUEST: lambda _: costs["psp.guest_request_ns"],
            **{command: lambda _: costs["psp.tio_exchange_ns"] for command in _TO_DEVICES},
            LegacyCommand.LAUNCH_UPDATE_DATA: lambda buffer: (
                legacy_ns_per_kib * measured_bytes(LegacyCommand.LAUNCH_UPDATE_DATA, buffer) / _KIB
            ),
            LegacyCommand.LAUNCH_UPDATE_VMSA: lambda _: legacy_ns_per_kib * PAGE_BYTES / _KIB,
            # Nobody has published what swapping takes: as long as the same work for another's key.
            SnpCommand.PAGE_SWAP_OUT: lambda _: costs["psp.send_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            SnpCommand.PAGE_SWAP_IN: lambda _: costs["psp.receive_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            # A page at a time, as KVM does it.
            LegacyCommand.SEND_UPDATE_DATA: lambda _: costs["psp.send_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            LegacyCommand.SEND_UPDATE_VMSA: lambda _: costs["psp.send_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            LegacyCommand.RECEIVE_UPDATE_DATA: lambda _: costs["psp.receive_update_ns_per_kib"] * PAGE_BYTES / _KIB,
            LegacyCommand.RECEIVE_UPDATE_VMSA: lambda _: costs["psp.receive_update_ns_per_kib"] * PAGE_BYTES / _KIB,
        }

    def price(self, batch: tuple[op.HypervisorOperation, ...]) -> float:
        """Nanoseconds of the host's core for a batch; operations not in the table are free or the mailbox's."""
        table = self._table
        return sum([table[type(one)](one) for one in batch if type(one) in table], 0.0)

    def price_of_work(self, batch: tuple[op.HypervisorOperation, ...]) -> float:
        """Nanoseconds of a batch for what does not grow with the pages that hold bytes."""
        table = self._table
        return sum([table[type(one)](one) for one in batch if type(one) in _WORK], 0.0)

    def exits_ns(self, work: Iterable[tuple[op.HypervisorOperation, ...]], row_ns: dict[str, float]) -> float:
        """Nanoseconds that a guest waits for batches of an exit, beyond the round trip: changes of the RMP and of VMPL.

        The figure of a round trip holds reading and writing the GHCB. Rows with a sweep range are added to ``row_ns``.
        """
        table, total_ns = self._in_exit, 0.0
        for batch in work:
            spent_ns = 0.0
            for one in batch:
                kind = type(one)
                if kind in table:
                    part_ns = table[kind](one)
                    spent_ns += part_ns
                    if (row := _ROWS_IN_EXIT.get(kind)) is not None:
                        row_ns[row] = row_ns.get(row, 0.0) + part_ns
            total_ns += spent_ns
        return total_ns

    def psp_service_ns(self, one: op.PspCommand) -> float:
        """Nanoseconds the security processor works on one command."""
        if one.paid:
            return 0.0
        priced = self._psp_table.get(one.command)
        rest_ns = self._costs["psp.launch_fixed_ns"] if one.with_rest else 0.0
        return rest_ns + (priced(one.buffer) if priced else self._costs["psp.command_ns"])

    def psp_row(self, command: int) -> str:
        """The row with a sweep range that the service of a command in an exit is in proportion to; empty for none."""
        if command in _TO_DEVICES:
            return "psp.tio_exchange_ns"
        return "" if command in self._psp_table else "psp.command_ns"


_ROWS_IN_EXIT: Mapping[type, str] = {
    op.RmpUpdate: "rmp.update_ns", op.PSmash: "rmp.psmash_ns", op.VmRun: "vmpl.switch_extra_ns",
}  # fmt: skip
_OF_WORK = {"gpu.seal_ns_per_kib": Mechanism.BOUNCE, "core.vc_ns": Mechanism.VMGEXIT}
_WORK = (op.HostWork, op.Wbinvd, op.AgentCall, op.HandlerCall)
_TO_DEVICES = [one for one, row in COMMANDS.items() if row.layout is not None and issubclass(row.layout, SpdmOrder)]


def _pages(length: int) -> int:
    return -(-max(0, length) // PAGE_BYTES)


def _lines(length: int) -> int:
    return -(-max(0, length) // LINE_BYTES)
