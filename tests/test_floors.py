"""The house stands: floors import only downward, chips know no clock, files stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

FLOORS = ("tio", "psp", "node", "workloads", "cluster")
"""From the ground up: a floor imports itself and those before it."""

CLOCKS_AND_WIRES = {"asyncio", "concurrent", "multiprocessing", "random", "ray", "secrets", "select", "simpy", "socket"}
CLOCKS_AND_WIRES |= {"subprocess", "threading", "time"}
"""What a chip must not know: clocks, threads, sockets and global randomness."""

MAY_IMPORT = {
    "node/clock.py": {"simpy"},  # the event loop of one host
}
RAY_ONLY_IN = "cluster/ray_cluster.py"
CLOCKLESS = ("tio", "psp", "node")
TEST_ONLY = {"hypothesis", "jsonschema", "pytest", "sevsnpmeasure"}
LONGEST_FILE = 600


def modules() -> list[str]:
    return sorted(
        path.relative_to(PROJECT).as_posix() for floor in FLOORS for path in (PROJECT / floor).rglob("*.py")
    )


MODULES = modules()


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Every absolute import of a module, also those inside functions: (line, dotted name)."""
    for node in ast.walk(ast.parse((PROJECT / module).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: expected an absolute import"
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            # An imported name made at run time cannot be followed; its constant beginning can.
            if isinstance(name, ast.JoinedStr):
                name = name.values[0]
            assert isinstance(name, ast.Constant), f"{module}:{node.lineno}: expected an import that can be read"
            yield node.lineno, str(name.value)


def offences(module: str) -> Iterator[str]:
    floor = module.split("/", maxsplit=1)[0]
    allowed = FLOORS[: FLOORS.index(floor) + 1]
    for line, name in imports(module):
        top = name.partition(".")[0]
        if top in FLOORS and top not in allowed:
            yield f"{module}:{line}: {floor} imports {top}, a floor above it"
        if floor in CLOCKLESS and top in CLOCKS_AND_WIRES - MAY_IMPORT.get(module, set()):
            yield f"{module}:{line}: {floor} imports {top}"
        if top == "ray" and module != RAY_ONLY_IN:
            yield f"{module}:{line}: only {RAY_ONLY_IN} imports ray"
        if top in TEST_ONLY or top == "tests":
            yield f"{module}:{line}: {top} belongs under tests/"


def test_every_floor_is_there() -> None:
    assert {module.split("/")[0] for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_floor_imports_only_downward_and_chips_know_no_clock(module: str) -> None:
    assert not list(offences(module))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_holds(module: str) -> None:
    assert ast.get_docstring(ast.parse((PROJECT / module).read_text("utf-8")))


def test_files_stay_small() -> None:
    files = [*MODULES, *(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tests").rglob("*.py"))]
    lengths = {file: len((PROJECT / file).read_text("utf-8").splitlines()) for file in files}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("psp/x.py", "import node.rmp"),
        ("tio/x.py", "from psp.status import Status"),
        ("node/rmp.py", "import simpy"),
        ("node/rmp.py", "def f():\n    from time import monotonic"),
        ("cluster/simulation.py", "import ray"),
        ("workloads/x.py", "import importlib\nimportlib.import_module('cluster.simulation')"),
        ("psp/x.py", "import hypothesis"),
    ],
)
def test_the_walk_finds_what_it_forbids(
    module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / module).parent.mkdir(parents=True)
    (tmp_path / module).write_text(source)
    monkeypatch.setitem(globals(), "PROJECT", tmp_path)
    assert list(offences(module))
