"""Workers run the driver's code and nothing else, and a worker that does not is named before it gets any work."""

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import actor_shell
from cluster.actor_shell import ActorShell, hash_of_code
from cluster.code_bundle import code_archive, code_hash, code_root, difference, offer, own_papers
from cluster.shard_worker import ShardWorker, parsed_report

FOREIGN = 'raise SystemError("a foreign package was imported")\n'


def test_the_archive_holds_the_code_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = code_archive()
    code_archive.cache_clear()
    assert code_archive() == first
    with zipfile.ZipFile(io.BytesIO(first)) as packed:
        packed.extractall(tmp_path)
    assert hash_of_code(tmp_path) == code_hash()
    assert (tmp_path / "node" / "costs.csv").read_bytes() == (code_root() / "node" / "costs.csv").read_bytes()


def test_any_change_of_any_file_is_another_hash(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "a.py").write_text("x = 1\n")
    hashes = {hash_of_code(tmp_path)}
    (tmp_path / "node" / "a.py").write_text("x = 2\n")
    hashes.add(hash_of_code(tmp_path))
    (tmp_path / "node" / "a.py").rename(tmp_path / "node" / "b.py")
    hashes.add(hash_of_code(tmp_path))
    (tmp_path / "node" / "table.csv").write_text("")
    hashes.add(hash_of_code(tmp_path))
    assert len(hashes) == 4
    (tmp_path / "node" / "__pycache__").mkdir()
    (tmp_path / "node" / "__pycache__" / "a.pyc").write_text("made by Python")
    (tmp_path / "README").write_text("no code")
    assert hash_of_code(tmp_path) in hashes


WORKER = """
import importlib.util, pickle, sys
spec = importlib.util.spec_from_file_location("by_value", sys.argv[1])
shell = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shell)
offer, made_of = pickle.load(sys.stdin.buffer)
if "imported" in sys.argv:
    sys.modules["cluster"] = sys  # another package of this name was imported before
actor = type("Shell", (shell.ActorShell,), {"offer": offer})(made_of)
papers = actor.papers()
answer = b"" if papers[-1] else actor.call("start", None, [])
sys.stdout.buffer.write(pickle.dumps((papers, answer)))
"""


def in_a_worker(offered: actor_shell.Offer, folder: Path, *more: str) -> tuple[actor_shell.Papers, bytes]:
    """A shell in a Python that has none of our code and starts in a folder with foreign packages of our names."""
    for name in ("cluster", "node"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(FOREIGN)
    (folder / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, actor_shell.__file__, *more],
        input=pickle.dumps((offered, pickle.dumps((ShardWorker, ())))),
        cwd=folder, capture_output=True, check=True, env={"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(folder)},
    )  # fmt: skip
    papers, answer = pickle.loads(done.stdout)
    return papers, answer


@pytest.mark.parametrize("more", [(), ("imported",)])
def test_a_worker_among_foreign_packages_runs_the_code_of_the_archive(tmp_path: Path, more: tuple[str, ...]) -> None:
    papers, answer = in_a_worker((code_hash(), "/nowhere", code_archive()), tmp_path, *more)
    assert difference(own_papers(), papers) is None
    assert parsed_report(answer).reached
    (shelf,) = (tmp_path / "tmp").iterdir()
    assert hash_of_code(shelf / code_hash()) == code_hash()


def test_a_worker_that_sees_the_drivers_folder_unpacks_nothing(tmp_path: Path) -> None:
    papers, _ = in_a_worker(offer(archive=True), tmp_path)
    assert difference(own_papers(), papers) is None
    assert not list((tmp_path / "tmp").iterdir())


def test_damaged_code_on_the_shelf_is_not_used(tmp_path: Path) -> None:
    sent = (code_hash(), "/nowhere", code_archive())
    in_a_worker(sent, tmp_path)
    (shelf,) = (tmp_path / "tmp").iterdir()
    (shelf / code_hash() / "node" / "rmp.py").write_text(FOREIGN)
    papers, _ = in_a_worker(sent, tmp_path)
    assert difference(own_papers(), papers) is None


def test_a_folder_of_another_version_is_passed_over_for_the_archive(tmp_path: Path) -> None:
    (tmp_path / "other" / "cluster").mkdir(parents=True)
    (tmp_path / "other" / "cluster" / "__init__.py").write_text(FOREIGN)
    papers, _ = in_a_worker((code_hash(), str(tmp_path / "other"), code_archive()), tmp_path)
    assert difference(own_papers(), papers) is None


def test_without_any_code_the_papers_say_so(tmp_path: Path) -> None:
    papers, _ = in_a_worker((code_hash(), "/nowhere", b""), tmp_path)
    assert "the driver's code is not on this machine" in str(difference(own_papers(), papers))


def test_an_actor_that_was_not_let_in_says_why_instead_of_what_it_is_asked() -> None:
    shell = type("Shell", (ActorShell,), {"offer": (code_hash(), "/nowhere", b"")})(pickle.dumps((list, ())))
    with pytest.raises(ImportError, match=r"^FileNotFoundError: the driver's code is not on this machine as"):
        shell.call("index", 1)


def test_an_actor_that_was_let_in_is_called_by_name_and_with_functions() -> None:
    shell = ActorShell.__new__(ActorShell)
    shell._problem = ""
    shell._object = [3, 1, 2]
    assert shell.call("index", 1) == 1
    assert shell.apply(sorted) == [1, 2, 3]


MACHINE, PYTHON, CODE, LIBRARIES, NOTHING = own_papers()


@pytest.mark.parametrize(
    ("papers", "line"),
    [
        (own_papers(), None),
        (("rack-7", PYTHON, "0" * 64, LIBRARIES, ""), f"sevfleet's code {CODE[:12]}, got 000000000000"),
        (("rack-7", PYTHON, "", LIBRARIES, ""), f"sevfleet's code {CODE[:12]}, got none"),
        (("rack-7", "3.4.1", CODE, LIBRARIES, ""), f"Python {PYTHON}, got 3.4.1"),
        (
            ("rack-7", PYTHON, CODE, (("numpy", "1.0"), *(one for one in LIBRARIES if one[0] != "numpy")), ""),
            f"numpy {dict(LIBRARIES)['numpy']}, got 1.0",
        ),
        # What is missing is the reason for what could not be imported.
        (
            ("rack-7", PYTHON, "", tuple(one for one in LIBRARIES if one[0] != "simpy"), "ImportError: simpy"),
            f"simpy {dict(LIBRARIES)['simpy']}, got none",
        ),
        (("rack-7", PYTHON, "", LIBRARIES, "OSError: full"), "sevfleet's code to be imported, got OSError: full"),
    ],
)
def test_each_difference_is_one_line_that_names_the_machine(papers: actor_shell.Papers, line: str | None) -> None:
    expected = None if line is None else f"machine rack-7: expected {line}"
    assert difference(own_papers(), papers) == expected
