"""What a hypervisor can do about a guest without any instruction: it keeps books, and answers from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TellDr7:
    """Answer the victim from now on that its DR7 holds this. Answer: None. Only who asks will hear it."""

    value: int


@dataclass(frozen=True, slots=True)
class NoteSmashed:
    """Remember that the 2 MiB around one of the victim's frames were smashed, or be refused later. Answer: None."""

    spa: int


BookOperation = TellDr7 | NoteSmashed
