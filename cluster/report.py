"""What a run found, for a person at a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.migration import Outcome
from cluster.results import Results
from cluster.stretched import OWN, Stretched, kinds_of
from cluster.units import DURATION, SIZE
from cluster.whole_tables import print_table
from node.cost_table import load_cost_table
from node.generation import CAPABILITIES, Generation
from node.mechanism import Mechanism

ADDED = {
    Mechanism.ENCRYPTION: "cipher",
    Mechanism.RMP: "RMP",
    Mechanism.NUMA: "NUMA",
    Mechanism.VMGEXIT: "exits",
    Mechanism.ACCEPTANCE: "accept",
    Mechanism.BOUNCE: "bounce",
    Mechanism.IDE: "IDE",
    Mechanism.SVSM: "SVSM",
    Mechanism.PSP: "PSP",
    Mechanism.PSP_WAIT: "PSP queue",
    Mechanism.DISK_WAIT: "disk",
    Mechanism.LOADED_LATENCY: "latency",
    Mechanism.LLC: "LLC",
    Mechanism.SMT: "SMT",
    Mechanism.CORE_WAIT: "cores",
    Mechanism.MIGRATION: "moving",
}
"""What comes on top: by the generation, then by the neighbours; with the column's heading."""

_WIDTH = 160
_LONG = {"operations_by_process"}
"""What run.json holds and nobody wants to read at the end of a summary."""
_FEW = 4
_MOST_NEIGHBOURS = 12
_MOST_SWINGS = 10
_LEAST_SWING = 0.00005
"""One that would be shown as nothing."""

Row = Mapping[str, Any]


def _ends(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def print_summary(
    results: Results, console: Console | None = None, *, ranges: Sequence[Stretched] = ()
) -> None:
    """Print the summary of a run to standard output, with the ranges of its headlines where they are given."""
    out = console or wide_console()
    if results.partial is not None:
        out.print(f"[bold]Partial results:[/] {results.partial}\n")
    for table in (
        _slowdowns(results), _workloads(results, ranges), _tornado(results, ranges), _neighbours(results),
        _disks(results), _networks(results), _waits(results), _moves(results), _drains(results), _firmware(results),
        _resources(results), _refusals(results),
    ):  # fmt: skip
        if table.row_count:
            print_table(out, table)
            out.print()
    for line in _closing_lines(results):
        out.print(line, highlight=False)


@dataclass(slots=True)
class _Kind:
    """All virtual machines of one workload and generation."""

    launches_ns: list[int] = field(default_factory=list)
    machines: int = 0
    work: int = 0
    times_ns: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def own_ns(self) -> float:
        return sum(self.times_ns[mechanism] for mechanism in OWN)


def _workloads(results: Results, ranges: Sequence[Stretched]) -> Table:
    """Each workload's slowdown by generation and mechanism."""
    kinds: defaultdict[tuple[str, str], _Kind] = defaultdict(_Kind)
    kind_of: dict[str, _Kind] = {}
    names = kinds_of(results)
    for row in _rows(results, "vms"):
        kind = kind_of[row["vm"]] = kinds[names[row["vm"]]]
        kind.machines += 1
        kind.work += row["units_of_work"]
        if row["launch_ns"] is not None:
            kind.launches_ns.append(row["launch_ns"])
    for row in _rows(results, "vm_time"):
        kind_of[row["vm"]].times_ns[row["mechanism"]] += row["time_ns"]
    table = _table(
        "Workloads: time on top of what the program itself needs, by mechanism",
        "workload", "generation", "VMs", "launch", "work", "stretched", *(["swept"] if ranges else []), *ADDED.values(),
    )  # fmt: skip
    swept = {(one.workload, one.generation): _ends(one.low, one.high) for one in ranges}
    for (workload, generation), kind in sorted(kinds.items()):
        added = [_percent(kind.times_ns[mechanism], kind.own_ns) for mechanism in ADDED]
        stretched = f"{sum(kind.times_ns.values()) / kind.own_ns:.3f} x" if kind.own_ns else "-"
        launch = DURATION.about(median(kind.launches_ns)) if kind.launches_ns else "-"
        between = [swept.get((workload, generation), "-")] if ranges else []
        table.add_row(workload, generation, str(kind.machines), launch, f"{kind.work:,}", stretched, *between, *added)
    return _narrowed(table)


def _tornado(results: Results, ranges: Sequence[Stretched]) -> Table:
    """Which rows of costs that nobody has published matter most, to slowdowns where there are pairs."""
    swings = [(row, kind, low, high) for kind, _, rows in _pair_ranges(results) for row, low, high in rows]
    if not swings:
        swings = [(row, (one.workload, one.generation), low, high) for one in ranges for row, low, high in one.swings]
    swings.sort(key=lambda one: -abs(one[3] - one[2]))
    swings = [one for one in swings if abs(one[3] - one[2]) >= _LEAST_SWING][:_MOST_SWINGS]
    table = _table("Rows of the cost table that nobody has published, swept one at a time", "row", "workload",
                   "generation", "from", "to", "swing")  # fmt: skip
    for row, kind, low, high in swings:
        table.add_row(row, *kind, f"{low:.4f} x", f"{high:.4f} x", f"{100 * abs(high - low):.2f} %")
    return table


def _pair_ranges(
    results: Results,
) -> list[tuple[tuple[str, str], float, list[tuple[str, float, float]]]]:
    """By workload and generation the mean slowdown of its pairs, and the same at both ends of each row."""
    pairs: defaultdict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in _rows(results, "pairs"):
        pairs[row["workload"], row["generation"]][row["vm"], row["generation"]] = row["slowdown"]
    ends: defaultdict[str, dict[tuple[str, str], tuple[float, float]]] = defaultdict(dict)
    for row in _rows(results, "pair_swings"):
        ends[row["row"]][row["vm"], row["generation"]] = row["low"], row["high"]
    found = []
    for kind, own in sorted(pairs.items()):
        rows = []
        for name, some in sorted(ends.items()):
            if own.keys() & some.keys():
                both = [some.get(pair, (slowdown, slowdown)) for pair, slowdown in own.items()]
                low, high = (sum(one[end] for one in both) / len(both) for end in (0, 1))
                rows.append((name, low, high))
        found.append((kind, sum(own.values()) / len(own), rows))
    return found


def _slowdowns(results: Results) -> Table:
    """What each generation costs each workload, from pairs; means over VMs."""
    slowdowns: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    parts: defaultdict[tuple[str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    kind_of: dict[tuple[str, str], tuple[str, str]] = {}
    for row in _rows(results, "pairs"):
        kind = kind_of[row["vm"], row["generation"]] = (row["workload"], row["generation"])
        slowdowns[kind].append(row["slowdown"])
    for row in _rows(results, "pair_parts"):
        parts[kind_of[row["vm"], row["generation"]]][row["mechanism"]] += row["share"]
    table = _table(
        "Slowdown: each VM against itself run as PLAIN, same host, neighbours and seed",
        "workload", "generation", "VMs", "slowdown", "swept", *ADDED.values(), "other",
    )  # fmt: skip
    swept = {
        kind: _ends(*[edge([mean, *[end for _, *both in rows for end in both]]) for edge in (min, max)])
        for kind, mean, rows in _pair_ranges(results)
    }
    for kind, values in sorted(slowdowns.items()):
        shares = {mechanism: share / len(values) for mechanism, share in parts[kind].items()}
        added = [_percent(shares.get(mechanism, 0.0), 1.0) for mechanism in ADDED]
        other = _percent(sum(share for mechanism, share in shares.items() if mechanism not in ADDED), 1.0)
        table.add_row(*kind, str(len(values)), f"{sum(values) / len(values):.4f} x", swept[kind], *added, other)
    return _narrowed(table)


def _waits(results: Results) -> Table:
    """What waited on the security processors."""
    commands: defaultdict[str, int] = defaultdict(int)
    for row in _rows(results, "psp"):
        commands[row["host"]] += row["commands"]
    table = _table("Security processors", "host", "commands", "busy", "waited for", "longest wait", "most time in")
    for row in _rows(results, "hosts"):
        if commands[row["host"]]:
            table.add_row(
                row["host"],
                f"{commands[row['host']]:,}",
                DURATION.about(row["psp_busy_ns"]),
                DURATION.about(row["psp_wait_ns"]),
                DURATION.about(row["psp_longest_wait_ns"]),
                _dearest_command(results, row["host"]),
            )
    return table


def _dearest_command(results: Results, host: str) -> str:
    rows = [row for row in _rows(results, "psp") if row["host"] == host]
    return str(max(rows, key=lambda row: (row["service_ns"], row["command"]))["command"])


def _resources(results: Results) -> Table:
    """Memory and ASIDs in use, and what limits each host."""
    table = _table(
        "Hosts, at most in use", "host", "product", "VMs", "memory", "vCPUs", "SEV ASIDs", "ES/SNP ASIDs", "limit"
    )
    for row in _rows(results, "hosts"):
        table.add_row(
            row["host"],
            row["product"],
            str(row["vms"]),
            f"{SIZE.about(row['memory_peak_bytes'])} of {SIZE.about(row['memory_bytes'])}",
            f"{row['vcpus_peak']} of {row['threads']}",
            f"{row['asids_sev_peak']} of {row['asids_sev']}",
            f"{row['asids_es_snp_peak']} of {row['asids_es_snp']}",
            f"{row['limit']} {row['limit_ratio']:.0%}",
        )
    return table


def _moves(results: Results) -> Table:
    """Live migrations by generation and outcome."""
    kinds: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in _rows(results, "migrations"):
        how = []
        if row["carrier"].startswith("handler") and row["outcome"] == Outcome.COMPLETED:
            how.append(f"by its {row['carrier']}")
        if row["devices"]:
            how.append(f"devices: {row['devices']}")
        kinds[row["generation"], row["outcome"], row["reason"] or ", ".join(how)].append(row)
    table = _table(
        "Live migrations", "generation", "outcome", "VMs", "rounds", "sent", "took", "downtime", "longest", "reason",
        "",
    )  # fmt: skip
    for (generation, outcome, reason), rows in sorted(kinds.items()):
        took = [
            row["ended_ns"] - row["started_ns"]
            for row in rows
            if row["started_ns"] is not None and row["ended_ns"] is not None
        ]
        down = [row["downtime_ns"] for row in rows if row["downtime_ns"] is not None]
        table.add_row(
            generation, outcome, f"{len(rows):,}",
            f"{median(row['rounds'] for row in rows):g}",
            SIZE.about(sum(row["bytes"] for row in rows)),
            DURATION.about(median(took)) if took else "-",
            DURATION.about(median(down)) if down else "-",
            DURATION.about(max(down)) if down else "-",
            reason,
            _unmeasured_move(generation) if outcome == Outcome.COMPLETED else "",
        )  # fmt: skip
    return table


def _unmeasured_move(generation: str) -> str:
    """What to say of moves that nobody has measured: with a key of their own, machines go by unpublished rates."""
    if generation not in _WITH_A_KEY:
        return ""
    sweep = load_cost_table().row("psp.send_update_ns_per_kib").sweep if generation in _SENT_BY_FIRMWARE else None
    if sweep is None:
        return "model only"
    slowest, fastest = (1024e3 / ns_per_kib for ns_per_kib in reversed(sweep))
    return f"model only: firmware sends {slowest:g} to {fastest:g} MB/s"


_WITH_A_KEY = {one.name for one in Generation if CAPABILITIES[one].key_per_vm}
_SENT_BY_FIRMWARE = {Generation.SEV.name, Generation.SEV_ES.name}


def _neighbours(results: Results) -> Table:
    """Who costs whom most, of different machines; the table ``neighbours`` has it by phase."""
    lost: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    own: defaultdict[str, float] = defaultdict(float)
    for row in _rows(results, "neighbours"):
        if row["vm"] != row["neighbour"]:
            lost[row["vm"], row["neighbour"], row["mechanism"]] += row["time_ns"]
    if lost:
        for row in _rows(results, "vm_time"):
            own[row["vm"]] += row["time_ns"] if row["mechanism"] in OWN else 0.0
    most = sorted(lost.items(), key=lambda one: (-one[1], one[0]))[:_MOST_NEIGHBOURS]
    title = f"Neighbours: what costs most, {len(most)} of {len(lost)}"
    table = _table(title, "VM", "neighbour", "mechanism", "time", "of its own")
    for (vm, neighbour, mechanism), ns in most:
        table.add_row(vm, neighbour, mechanism, DURATION.about(ns), _percent(ns, own[vm]))
    return table


def _disks(results: Results) -> Table:
    """What machines asked of their disks, by workload and generation."""
    table = _table(
        "Disks", "workload", "generation", "VMs", "requests", "read", "written", "errors", "latency", "longest",
        "copies", "bounced",
    )  # fmt: skip
    for (workload, generation), pairs in _by_kind(results, "disks"):
        vms, rows = [vm for vm, _ in pairs], [row for _, row in pairs]
        served = sum(row["reads"] + row["writes"] for row in rows)
        table.add_row(
            workload, generation, f"{len(rows):,}", f"{served:,}",
            SIZE.about(sum(row["bytes_read"] for row in rows)), SIZE.about(sum(row["bytes_written"] for row in rows)),
            f"{sum(row['errors'] for row in rows):,}",
            DURATION.about(round(sum(row["time_ns"] for row in rows) / served)) if served else "-",
            DURATION.about(round(max(row["latency_longest_ns"] or 0 for row in rows))) if served else "-",
            f"{sum(vm['copies'] for vm in vms):,}", SIZE.about(sum(vm["bytes_bounced"] for vm in vms)),
        )  # fmt: skip
    return table


def _networks(results: Results) -> Table:
    """What went through machines' network cards, by workload and generation."""
    table = _table(
        "Networks", "workload", "generation", "VMs", "sent", "received", "frames in", "lost", "delay", "longest",
        "copies", "bounced",
    )  # fmt: skip
    for (workload, generation), pairs in _by_kind(results, "networks"):
        vms, rows = [vm for vm, _ in pairs], [row for _, row in pairs]
        came = sum(row["frames_received"] for row in rows)
        delay_ns = sum((row["delay_mean_ns"] or 0.0) * row["frames_received"] for row in rows)
        table.add_row(
            workload, generation, f"{len(rows):,}",
            SIZE.about(sum(row["bytes_sent"] for row in rows)), SIZE.about(sum(row["bytes_received"] for row in rows)),
            f"{came:,}", f"{sum(row['frames_missed'] + row['frames_refused'] for row in rows):,}",
            DURATION.about(round(delay_ns / came)) if came else "-",
            DURATION.about(max(row["delay_longest_ns"] or 0 for row in rows)) if came else "-",
            f"{sum(vm['copies'] for vm in vms):,}", SIZE.about(sum(vm["bytes_bounced"] for vm in vms)),
        )  # fmt: skip
    return table


def _by_kind(results: Results, table: str) -> list[tuple[tuple[str, str], list[tuple[Row, Row]]]]:
    """Rows of a table of machines, each with its machine's own, by workload and generation."""
    vms = {row["vm"]: row for row in _rows(results, "vms")}
    kinds: defaultdict[tuple[str, str], list[tuple[Row, Row]]] = defaultdict(list)
    for row in _rows(results, table):
        vm = vms[row["vm"]]
        kinds[vm["workload"], vm["generation"]].append((vm, row))
    return sorted(kinds.items(), key=lambda item: item[0])


def _drains(results: Results) -> Table:
    """Hosts that were to be emptied."""
    table = _table("Drains", "host", "took", "result")
    for row in _rows(results, "drains"):
        took = DURATION.about(row["ended_ns"] - row["asked_ns"]) if row["ended_ns"] is not None else "-"
        table.add_row(row["host"], took, row["result"])
    return table


def _firmware(results: Results) -> Table:
    """What was asked of security processors, and what came of it."""
    table = _table("Firmware", "host", "at", "order", "result", "runs", "committed", "reported TCB", "VCEK", "guests")
    for row in _rows(results, "firmware"):
        table.add_row(
            row["host"], DURATION.about(row["ended_ns"]), row["action"], row["result"], row["version"],
            row["committed_version"], row["reported_tcb"], row["vcek"] or "-", f"{row['guests']:,}",
        )  # fmt: skip
    return table


def _refusals(results: Results) -> Table:
    """Machines that nobody took, or that failed."""
    table = _table("Not as asked", "VM", "generation", "state", "reason")
    for row in _rows(results, "vms"):
        if row["state"] in {"refused", "failed"}:
            table.add_row(row["vm"], row["generation"], row["state"], row["reason"] or "")
    return table


def _closing_lines(results: Results) -> Iterable[str]:
    """The run in figures: what follows from the scenario, then how it went this time."""
    hosts = _rows(results, "hosts")
    ciphered = sum(row["bytes_encrypted"] + row["bytes_decrypted"] for row in hosts)
    operations = sum(row["operations"] for row in hosts)
    yield f"{operations:,} guest operations, {SIZE.about(ciphered)} through the cipher"
    yield from (f"{name.replace('_', ' ')}: {value}" for name, value in results.figures.items())
    run = results.run
    if run:
        yield ", ".join(f"{_run_name(name)} {_run_value(name, run[name])}" for name in run if name not in _LONG)
    yield f"digest {results.digest}"


def _run_name(name: str) -> str:
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _run_value(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return _sizes(value)
    if isinstance(value, float):
        return f"{value:.1f} s" if name.endswith("_s") else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sizes(sizes: Mapping[str, int]) -> str:
    """Bytes by name: each where they are few, else all together and the largest."""
    if len(sizes) <= _FEW:
        return " and ".join(f"{SIZE.about(size)} ({name})" for name, size in sizes.items())
    largest = max(sizes, key=lambda name: sizes[name])
    return f"{SIZE.about(sum(sizes.values()))} in {len(sizes)}, most {SIZE.about(sizes[largest])} ({largest})"


def _rows(results: Results, table: str) -> Sequence[Row]:
    rows: Sequence[Row] = results.tables[table].to_pylist()
    return rows


def _table(title: str, *headings: str) -> Table:
    """A table without lines; figures to the right, words to the left."""
    words = {
        "workload", "generation", "outcome", "result", "host", "product", "VM", "vm", "state", "reason", "limit",
        "most time in", "neighbour", "mechanism", "row",
    }  # fmt: skip
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=heading != "reason")
    return table


def _narrowed(table: Table) -> Table:
    """The table without the mechanisms that nobody spent time on."""
    kept = [column for column in table.columns if column.header not in _MECHANISMS or any(column.cells)]
    # Anew, for a column measures itself by where it stood at first.
    narrowed = _table(str(table.title or ""), *(str(column.header) for column in kept))
    for cells in zip(*(column.cells for column in kept), strict=True):
        narrowed.add_row(*cells)
    return narrowed


_MECHANISMS = {*ADDED.values(), "other"}


def _percent(part: float, whole: float) -> str:
    """A share with its sign; nothing where it is nothing, or less than can be shown."""
    shown = f"{100 * part / whole:+.2f} %" if whole else ""
    return "" if shown in {"+0.00 %", "-0.00 %"} else shown


def wide_console() -> Console:
    """Standard output; in a file or a pipe the tables keep their width."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
