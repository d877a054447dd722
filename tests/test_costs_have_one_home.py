"""No cost stands outside the cost table: every number in code that is named like one is on a list, with its reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FLOORS = ("node", "cluster", "workloads")
COST = re.compile(r"(_ns|_us|_ms|_per_s|_per_ns|_ns_per_\w+|_share|_cycles)$", re.IGNORECASE)
"""What names of costs end in."""

UNITS = re.compile(r"_?(NS_PER_S|NS_PER_MS|DAY_MS|NS)")

NO_COSTS = {
    "node/dirty_rates.py LOOK_NS": "how often a host looks at dirty rates",
    "node/dirty_rates.py LONGEST_LOOK_NS": "how seldom",
    "node/contention.py _DONE_NS": "half of a rounding",
    "node/contention.py _LEAST_SHARE": "against a division by zero",
    "node/contention.py NEVER_NS": "no time",
    "cluster/attested_guest.py _MOST_NS": "when to give up",
    "cluster/commands/keyserver.py _MOST_DELAY_MS": "a bound of an argument",
    "cluster/fleet.py BUCKET_NS": "of the digest",
    "cluster/key_server/failures.py FOR_EVER_NS": "no time",
    "cluster/ladder.py LEAST_SHARE": "what is too little to be shown",
    "cluster/laboratory/scene.py _PATIENCE_NS": "when to give up",
    "cluster/ray_start.py _TURN_MS": "how often somebody who waits comes back to Python",
    "node/contention.py _ENDLESS_NS": "what counts as without end",
    "cluster/steady_host.py _LOOK_NS": "how long a steady state is looked at",
    "cluster/validation/memory_cases.py _CROSSING_CYCLES": "the setup of a published case",
    "cluster/validation/memory_cases.py _HUGE_64_NS": "the setup of a published case",
    "cluster/validation/migration_cases.py _LIMIT_NS": "the setup of a published case",
    "workloads/attested_start.py TIMEOUT_NS": "a program's patience",
    "workloads/idle.py _FOR_EVER_NS": "no time",
    "workloads/key_value_server.py _FOR_EVER_NS": "no time",
    "workloads/relying_party.py _FOR_EVER_NS": "no time",
    "workloads/trace.py _LONGEST_MS": "a bound of a trace",
    "workloads/trace.py _LATEST_MS": "a bound of a trace",
    "workloads/trace_generator.py EPOCH_MS": "where generated traces begin",
    "workloads/trace_generator.py span_ms": "a shape of generated traces",
    "workloads/trace_generator.py SAMPLE_MS": "a shape of generated traces",
    "workloads/trace_generator.py resident_share": "a shape of generated traces",
    "workloads/trace_generator.py shortest_lifetime_ms": "a shape of generated traces",
    "workloads/trace_player.py _LONGEST_RUN_MS": "a bound of a program",
}


def numbers(module: str, source: str) -> Iterator[str]:
    """Every number other than 0, 1 and -1 that is bound to a name like a cost's: ``file name``."""
    for node in ast.walk(ast.parse(source)):
        for name, value in bindings(node):
            if COST.search(name) and not UNITS.fullmatch(name) and number_of(value) not in (None, 0, 1, -1):
                yield f"{module} {name}"


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Assign():
            yield from ((ast.unparse(target).rpartition(".")[2], node.value) for target in node.targets)
        case ast.AnnAssign(value=ast.expr() as value):
            yield ast.unparse(node.target).rpartition(".")[2], value
        case ast.keyword(arg=str() as arg):
            yield arg, node.value
        case ast.arguments():
            yield from zip((one.arg for one in node.args[-len(node.defaults) :]), node.defaults, strict=False)
            yield from ((one.arg, value) for one, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value)


def number_of(node: ast.expr) -> float | None:
    """The number that an expression of literals stands for, 2 for any arithmetic of two; None for no number."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub()):
            value = number_of(node.operand)
            return None if value is None else -value
        case ast.BinOp():
            left, right = number_of(node.left), number_of(node.right)
            return None if left is None or right is None else 2
    return None


def files() -> list[Path]:
    found = sorted(path for floor in FLOORS for path in (PROJECT / floor).rglob("*.py"))
    return [path for path in found if "bench" not in path.parts]  # targets of benchmarks


def test_no_cost_stands_outside_the_cost_table() -> None:
    found = {one for path in files() for one in numbers(path.relative_to(PROJECT).as_posix(), path.read_text("utf-8"))}
    assert sorted(found - NO_COSTS.keys()) == []
    assert sorted(NO_COSTS.keys() - found) == []


@pytest.mark.parametrize(
    "source",
    [
        "WALK_NS = 27", "def f(exit_ns: float = 1255.0): ...", "f(copy_bytes_per_s=24 * 10**9)",
        "class A:\n    wake_us: int = 3", "def f(*, cipher_share=-0.9): ...", "self.walk_ns = 2.5",
    ],
)  # fmt: skip
def test_the_walk_finds_a_cost_in_code(source: str) -> None:
    assert list(numbers("x.py", source))


@pytest.mark.parametrize("source", ["seen_ns = -1", "left_ns = 0", "END_NS = costs['x']", "WALKS = 27"])
def test_the_walk_leaves_the_rest_alone(source: str) -> None:
    assert not list(numbers("x.py", source))
