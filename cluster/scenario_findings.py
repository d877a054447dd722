"""What pydantic found wrong with a scenario, said in one line: field, expectation, what was there."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.units import shown

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,63}")

_EXPECTATIONS = {
    "missing": "a value",
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list of tables",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least one entry",
    "string_too_long": "a text of at most {max_length} characters",
    "literal_error": "{expected}",
    "expected": "{expected}",
}
"""By pydantic's error type; the braces are filled from the error's context."""


def first_finding(error: ValidationError, model: type[BaseModel], data: Mapping[str, object]) -> tuple[str, str, str]:
    """The first finding, an unknown key before all others: it is often the cause of them."""
    details = error.errors(include_url=False)
    finding = next((found for found in details if found["type"] == "extra_forbidden"), details[0])
    location = finding["loc"]
    field = _path(location, data)
    if finding["type"] == "extra_forbidden":
        return field, *_unknown_key(location, model)
    got = "nothing" if finding["type"] == "missing" else shown(finding["input"])
    return field, _expectation(finding), got


def _expectation(finding: ErrorDetails) -> str:
    pattern = _EXPECTATIONS.get(finding["type"])
    return pattern.format(**finding.get("ctx", {})) if pattern else finding["msg"]


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, str]:
    key = str(location[-1])
    keys = [field.alias or name for name, field in _model_at(location[:-1], model).model_fields.items()]
    likely = difflib.get_close_matches(key, keys, n=1)
    meant = f'"{likely[0]}"' if likely else f"one of the keys {', '.join(keys)}"
    return meant, f"the unknown key {shown(key)}"


def _model_at(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model that a path leads to, for the names of its keys."""
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = _inner_model(field.annotation) or model
    return model


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner_model(argument) for argument in typing.get_args(annotation))
    return next((inner for inner in found if inner), None)


def _path(location: tuple[int | str, ...], data: Mapping[str, object]) -> str:
    """``vms[2].memory of "database"``: the place in the file, and the name its reader gave it."""
    path, here, name = "", typing.cast("object", data), None
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            here = here[part] if isinstance(here, (list, tuple)) and part < len(here) else None
            name = here.get("name") if isinstance(here, Mapping) else None
        elif part != "[key]":
            key = part if _PLAIN_KEY.fullmatch(part) else shown(part)
            path += f".{key}" if path else key
            here = here.get(part) if isinstance(here, Mapping) else None
    return f"{path} of {shown(name)}" if isinstance(name, str) and location[-1] != "name" else path
