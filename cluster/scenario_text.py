"""TOML in, from anybody; TOML out, for the scenario as it was run."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cluster.errors import UserError

LARGEST_FILE = 8 << 20
"""No scenario comes near; what is larger is something else and is not read."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Finding = Callable[[str, str, str, str], UserError]
"""Makes the error from file, field, expected and got."""


def read_toml(path: Path, error: Finding) -> dict[str, object]:
    """The values in a TOML file; whatever is wrong with it becomes one error."""
    file = str(path)
    try:
        if stat.S_IFMT(path.stat().st_mode) not in {stat.S_IFREG, stat.S_IFDIR}:
            # A pipe would be waited for, perhaps for ever. A folder is refused by who reads it.
            raise error(file, "", "a regular file", "something else")
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise error(file, "", "a scenario file", "no such file") from None
    except OSError as failure:
        raise error(file, "", "a readable file", str(failure.strerror)) from None
    if len(data) > LARGEST_FILE:
        raise error(file, "", f"a file of at most {LARGEST_FILE >> 20} MiB", "a larger one")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as failure:
        raise error(file, f"byte {failure.start}", "text in UTF-8", f"0x{data[failure.start]:02x}") from None
    except tomllib.TOMLDecodeError as failure:
        raise error(file, "", "TOML", _one_line(str(failure))) from None
    except (ValueError, RecursionError) as failure:
        # A number of thousands of digits, or lists in lists in lists.
        raise error(file, "", "TOML within reason", type(failure).__name__) from None


def write_toml(values: Mapping[str, object]) -> str:
    """TOML text of nested mappings, lists and scalars; None is left out."""
    return "\n".join(_table(values, ())) + "\n"


def _table(values: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    """Lines of one table: its scalars first, then its tables, as TOML wants them."""
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping) or _is_tables(value)}
    for key, value in values.items():
        if key not in inner and value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        name = ".".join(_key(part) for part in (*path, key))
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]")
            yield from _table(value, (*path, key))
        elif isinstance(value, list):
            for entry in value:
                yield from ("", f"[[{name}]]")
                yield from _table(entry, (*path, key))


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _text(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL and for characters beyond the basic plane."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(message: str, longest: int = 120) -> str:
    line = message.encode("unicode_escape").decode("ascii")
    return line if len(line) <= longest else line[: longest - 3] + "..."
