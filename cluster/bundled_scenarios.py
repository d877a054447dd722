"""The scenarios that ship with sevfleet, by name."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from cluster.errors import UserError
from cluster.scenario import Scenario, ScenarioError
from cluster.units import shown

DEMO = "demo"


def bundled_names() -> list[str]:
    """Every bundled scenario; the demo comes first."""
    names = [file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != DEMO, name))


def bundled_text(name: str) -> str:
    """The text of a bundled scenario. Raises UserError for a name that is none."""
    if name not in bundled_names():
        raise UserError(f"scenario {shown(name)}: expected a .toml file or one of {', '.join(bundled_names())}")
    return (_folder() / f"{name}.toml").read_text("utf-8")


def load_scenario(word: str) -> Scenario:
    """A scenario by file or by bundled name, as the command line takes it. Raises UserError."""
    if _is_file(word):
        return Scenario.load(word)
    text = bundled_text(word)
    return Scenario.parse(tomllib.loads(text), _file_of(word))


@contextlib.contextmanager
def in_file_of(word: str) -> Iterator[None]:
    """What turns out to be wrong with a scenario only when it is laid out is named after its file too."""
    try:
        yield
    except ScenarioError as error:
        raise error.in_file(_file_of(word)) from None


def _file_of(word: str) -> str:
    return word if _is_file(word) else f"bundled {word}.toml"


def _is_file(word: str) -> bool:
    return word.endswith(".toml") or Path(word).exists()


def _folder() -> Traversable:
    return resources.files("cluster") / "scenarios"
