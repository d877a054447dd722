"""What fields of a scenario are made of: names, counts, and tables that know no other keys."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

LARGEST_COUNT = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def refuse(expected: str) -> PydanticCustomError:
    """The finding that something else was expected."""
    return PydanticCustomError("expected", "{expected}", {"expected": expected})


def _path_text(text: str) -> str:
    if "\0" in text:
        raise refuse("a path, which holds no NUL")
    return text


PathText = Annotated[str, Strict(), AfterValidator(_path_text)]
"""A path, or a word in place of one; whether there is a file is looked at later."""


def _name(value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise refuse("a name of 1 to 63 letters, digits, '.', '_' and '-'")


Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST_COUNT)]


class ScenarioPart(BaseModel):
    """A table of a scenario: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, use_attribute_docstrings=True)
