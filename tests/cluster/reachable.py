"""What can be reached from running programs: their frames, closures, attributes and containers, all the way down."""

from __future__ import annotations

import dataclasses
import functools
import gc
import mmap
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
FLOORS = ("tio", "psp", "node", "workloads", "cluster")
_WHERE_PROGRAMS_ARE = tuple(f"{PROJECT}/{folder}/" for folder in ("node", "workloads", "tests"))
_FIXTURES = ("inspection", "look")
_ATOMS = (type, types.ModuleType, str, bytes, int, float, complex, bool, type(None), Enum, types.CodeType, range)


def references(obj: Any) -> Iterator[Any]:
    """Objects that one object leads to. A function leads to its closure and defaults, and to globals that it names."""
    if isinstance(obj, types.FunctionType):
        yield from (obj.__closure__ or ())
        yield from (obj.__defaults__ or ())
        yield from (obj.__kwdefaults__ or {}).values()
        yield from _named_globals(obj.__code__, obj.__globals__)
    elif isinstance(obj, types.GeneratorType):
        frame = obj.gi_frame
        if frame is not None:
            yield from frame.f_locals.values()
            yield from _named_globals(frame.f_code, frame.f_globals)
        if obj.gi_yieldfrom is not None:
            yield obj.gi_yieldfrom
    elif isinstance(obj, weakref.ref):
        yield obj()
    elif isinstance(obj, np.ndarray):
        yield obj.base
    elif isinstance(obj, memoryview):
        yield obj.obj
    else:
        # Attributes, slots, items, cells, bound objects, iterators: whatever the interpreter keeps alive.
        yield from gc.get_referents(obj)


def _named_globals(code: types.CodeType, names: dict[str, Any]) -> Iterator[Any]:
    for name in code.co_names:
        if name in names and not isinstance(names[name], types.FunctionType):
            yield names[name]


def walk(roots: Iterable[Any], cut: Callable[[Any], bool] = lambda _: False) -> dict[int, Any]:
    """Everything that can be reached from the roots, by identity; nothing is followed behind what ``cut`` names."""
    found: dict[int, Any] = {}
    todo = list(roots)
    while todo:
        obj = todo.pop()
        if isinstance(obj, _ATOMS) or id(obj) in found:
            continue
        found[id(obj)] = obj
        if not cut(obj):
            todo.extend(references(obj))
    return found


def own_class(obj: Any) -> bool:
    """Whether an object is of a class of the project."""
    return type(obj).__module__.split(".", 1)[0] in FLOORS


def is_state(obj: Any) -> bool:
    """Whether an object is a thing with a state of its own: an object of ours that can change, or a container."""
    if own_class(obj):
        frozen = dataclasses.is_dataclass(obj) and obj.__dataclass_params__.frozen
        return not frozen and not isinstance(obj, BaseException)
    return isinstance(obj, dict | list | set | bytearray | memoryview | np.ndarray | mmap.mmap)


def state_of(roots: Iterable[Any], cut: Callable[[Any], bool]) -> dict[int, Any]:
    """All things with a state that make up a machine, without tables that modules hold for everybody."""
    found, tables = walk(roots, cut), _tables(len(sys.modules))
    return {at: obj for at, obj in found.items() if at not in tables and is_state(obj)}


@functools.lru_cache(maxsize=1)
def _tables(_: int) -> dict[int, Any]:
    """What modules hold, so many of them: gathered again when another has been imported, and kept alive till then."""
    return {id(value): value for module in list(sys.modules.values()) for value in vars(module).values()}


def running_programs() -> list[types.GeneratorType]:
    """All generators of ``node``, ``workloads`` and tests that stand at a ``yield``, of those the collector still sees.

    Fixtures of tests are generators too, and hold what they please.
    """
    return [
        obj
        for obj in gc.get_objects()
        if isinstance(obj, types.GeneratorType)
        and obj.gi_frame is not None
        and obj.gi_frame.f_lasti >= 0
        and not obj.gi_running
        and obj.gi_code.co_name not in _FIXTURES
        and obj.gi_code.co_filename.startswith(_WHERE_PROGRAMS_ARE)
    ]


def place(program: types.GeneratorType) -> tuple[tuple[types.CodeType, int], ...]:
    """Where a generator stands, and those that it hands its answers on to."""
    found: list[tuple[types.CodeType, int]] = []
    part: Any = program
    while isinstance(part, types.GeneratorType) and part.gi_frame is not None:
        found.append((part.gi_code, part.gi_frame.f_lasti))
        part = part.gi_yieldfrom
    return tuple(found)


def chain(program: types.GeneratorType) -> set[int]:
    """A generator and those that it hands its answers on to."""
    ids: set[int] = set()
    part: Any = program
    while part is not None:
        ids.add(id(part))
        part = getattr(part, "gi_yieldfrom", None)
    return ids


def leaves(roots: Iterable[Any]) -> Iterator[bytes | str | int]:
    """Every byte string, text and number that can be reached."""
    for obj in walk(roots).values():
        for part in references(obj):
            if isinstance(part, bytes | str | int):
                yield part
        if isinstance(obj, bytearray | memoryview):
            yield bytes(obj)
        elif isinstance(obj, np.ndarray):
            yield obj.tobytes()
