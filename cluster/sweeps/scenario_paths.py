"""Places in a scenario by name: ``duration``, ``vms.database.vcpus``, ``costs.core.vmgexit_ns``.

A path leads from the scenario's top through tables by their keys; a group among
``hosts`` or ``vms`` goes by its name or its index from 0, other lists by index,
and ``*`` is every entry. What follows ``costs``, ``parameters`` or another free
table is one key, dots and all.
"""

from __future__ import annotations

import copy
import difflib
import typing
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from cluster.errors import UserError
from cluster.scenario import Scenario
from cluster.units import shown
from node.cost_table import load_cost_table
from node.program import Scalar

Place = tuple[str | int, ...]
"""Keys and indices from the top of a scenario's TOML values to one value."""

_EVERY = "*"
_FEW = 12


class PathError(UserError):
    """A path that leads to no setting of the scenario; names the path and what was expected at which of its words."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"{printable(path)}: expected {expected}, got {got}")


def printable(path: str) -> str:
    """A path as it may stand in a one-line message, whatever somebody put into it."""
    return shown(path, 120)[1:-1]


def scenario_values(scenario: Scenario) -> dict[str, object]:
    """A scenario as the values of its TOML; ``Scenario.parse`` of them gives an equal one."""
    return scenario.model_dump(mode="json", by_alias=True, exclude_none=True)


def places_of(path: str, values: Mapping[str, object]) -> tuple[Place, ...]:
    """The places in a scenario's ``values`` that ``path`` names: one, or more where it has a ``*``.

    Raises PathError. The setting need not be in ``values``; the tables on the way must.
    """
    if not all(path.split(".")):
        raise PathError(path, 'names with dots between, such as "vms.database.vcpus"', shown(path))
    return tuple(_Walk(path).in_table(tuple(path.split(".")), Scenario, values, ()))


def with_values(values: Mapping[str, object], changes: Mapping[Place, Scalar]) -> dict[str, object]:
    """A copy of a scenario's values with some of them set."""
    changed = copy.deepcopy(dict(values))
    for place, value in changes.items():
        here: typing.Any = changed
        for step in place[:-1]:
            here = here[step]
        here[place[-1]] = value
    return changed


class _Walk:
    """Follows one path along the models that say which keys there are, and the values that say which entries."""

    def __init__(self, path: str) -> None:
        self._path = path

    def in_table(
        self, words: tuple[str, ...], model: type[BaseModel], here: Mapping[str, object], place: Place
    ) -> list[Place]:
        """Places below a table that ``model`` describes."""
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        key, *rest = words
        if key not in fields:
            raise self._unknown(key, list(fields), "the keys")
        inner = _inner_model(fields[key])
        place = (*place, key)
        if inner is None:
            return [self._at_value(tuple(rest), fields[key], place)]
        if key not in here:
            raise PathError(self._path, f"a scenario with [{key}]", "one without")
        if not rest:
            raise PathError(self._path, f"a setting of {key}, as {key}.NAME", f"all of {key}")
        below = here[key]
        if isinstance(below, Mapping):
            return self.in_table(tuple(rest), inner, below, place)
        assert isinstance(below, list)
        return self._in_list(tuple(rest), inner, below, place)

    def _in_list(
        self, words: tuple[str, ...], model: type[BaseModel], entries: list[Mapping[str, object]], place: Place
    ) -> list[Place]:
        """Places below one entry of a list, or below every one."""
        for index, entry in enumerate(entries):
            # Names of groups may have dots in them.
            name = tuple(str(entry.get("name", "")).split("."))
            if words[: len(name)] == name:
                return self._in_entry(words[len(name) :], model, entry, (*place, index))
        word, *rest = words
        if word == _EVERY and entries:
            return [
                found
                for index, entry in enumerate(entries)
                for found in self._in_entry(tuple(rest), model, entry, (*place, index))
            ]
        if word.isascii() and word.isdigit() and len(word) <= 7 and int(word) < len(entries):
            return self._in_entry(tuple(rest), model, entries[int(word)], (*place, int(word)))
        names = [str(entry["name"]) for entry in entries if "name" in entry]
        if names:
            raise self._unknown(word, names, f"the {place[-1]}")
        expected = f"an index from 0 to {len(entries) - 1} or *" if entries else f"a scenario with {place[-1]}"
        raise PathError(self._path, expected, shown(word) if entries else "one without")

    def _in_entry(
        self, words: tuple[str, ...], model: type[BaseModel], entry: Mapping[str, object], place: Place
    ) -> list[Place]:
        if not words:
            raise PathError(self._path, f"one of its settings, as {self._path}.NAME", "all of it")
        return self.in_table(words, model, entry, place)

    def _at_value(self, rest: tuple[str, ...], annotation: object, place: Place) -> Place:
        """The place of a value itself, or of a key of a free table."""
        key, name = str(place[-1]), ".".join(rest)
        if typing.get_origin(annotation) is not dict:
            if rest:
                raise PathError(self._path, f"{key} to be the last word: it has no settings below", shown(rest[0]))
            return place
        if not rest:
            raise PathError(self._path, f"a setting of {key}, as {self._path}.NAME", f"all of {key}")
        if key == "costs" and name not in load_cost_table():
            raise self._unknown(name, list(load_cost_table()), "the figures of the cost table (node/costs.csv)")
        return (*place, name)

    def _unknown(self, word: str, known: Sequence[str], what: str) -> PathError:
        """The finding that ``word`` is none of ``what``: with the nearest, else with all where they are few."""
        near = difflib.get_close_matches(word, known, n=1)
        few = f": {', '.join(known)}" if len(known) <= _FEW else ""
        return PathError(self._path, f'"{near[0]}"' if near else f"one of {what}{few}", shown(word))


def _inner_model(annotation: object) -> type[BaseModel] | None:
    """The model in a field's annotation: its own, that of an optional one, or that of a list's entries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner_model(argument) for argument in typing.get_args(annotation))
    return next((inner for inner in found if inner is not None), None)
