"""One figure of a benchmark."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and, where one exists, the reference it is held against."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    """What the reference is: a published figure, or another tool's in the same run."""

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of the reference."""
        return self.value / self.reference if self.reference else None

    def to_json(self) -> str:
        """One line of JSON."""
        figure: dict[str, object] = {"name": self.name, "value": self.value, "unit": self.unit}
        if self.reference is not None:
            figure |= {"reference": self.reference, "reference_name": self.reference_name, "ratio": self.ratio}
        return json.dumps(figure)
