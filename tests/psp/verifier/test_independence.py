"""The verifier shares no code with what it judges."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import psp.verifier

FOLDER = Path(psp.verifier.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))


def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield node.id


def foreign(source):
    own = set(sys.stdlib_module_names) | {"cryptography"}
    return [
        name
        for name in imported(source)
        if not name.startswith("psp.verifier") and (name.partition(".")[0] not in own or name == "importlib")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_imports_the_standard_library_cryptography_and_itself(path):
    assert foreign(path.read_text("utf-8")) == []


@pytest.mark.parametrize("line", ["from psp.status import Status", "import psp", "import importlib", "from . import a"])
def test_the_walk_finds_what_it_forbids(line):
    assert foreign(line)


JUDGING = """
import sys
from psp.verifier import AMD_ROOTS, Evidence, Expectations, Rejected, verify
try:
    verify(Evidence(bytes(1184), None, None, None), Expectations(), 0, AMD_ROOTS)
except Rejected as rejected:
    print(rejected.reason.name)
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {"psp", "tio", "node", "workloads", "cluster"}))
"""


def test_judging_loads_nothing_of_the_chip():
    """Not what the source names but what a process has loaded, ``psp`` itself being on the way there."""
    ran = subprocess.run([sys.executable, "-c", JUDGING], capture_output=True, text=True, check=True)
    reason, loaded = ran.stdout.splitlines()
    assert reason.startswith("REPORT_")
    assert "psp.verifier.verify" in loaded.split()
    assert [name for name in loaded.split() if name != "psp" and not name.startswith("psp.verifier")] == []
