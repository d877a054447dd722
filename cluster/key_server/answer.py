"""What a client of the key service gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """``after_ns`` is how long a client waits for it; ``retry_ns`` when it may ask again, if it may not now."""

    status: HTTPStatus
    content_type: str
    body: bytes = field(repr=False)
    after_ns: int = 0
    retry_ns: int = 0


def said(status: HTTPStatus, text: str, after_ns: int = 0, retry_ns: int = 0) -> Answer:
    """A refusal, in one line."""
    return Answer(status, TEXT, f"{text}\n".encode(), after_ns, retry_ns)
