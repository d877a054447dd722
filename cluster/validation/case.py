"""One published result as a case: what was measured, what is expected, how far off a prediction may be."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from node.product import PRODUCTS


class CaseError(ValueError):
    """A case that makes no sense; the message names it and the field."""


class CaseKind(StrEnum):
    """What a case can show."""

    QUANTITATIVE = "quantitative"
    QUALITATIVE = "qualitative"
    SIGN = "sign"
    MODEL_ONLY = "model only"
    """Nothing was published: there is a prediction and its interval, and nothing to hold them against."""


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of a case: published between ``least`` and ``most``, either of which may be open."""

    name: str
    result: str
    """The name of the published result, as the cost table's ``points`` name theirs."""
    least: float
    most: float
    unit: str
    tolerance: float
    """How far outside a prediction may be, in the unit."""
    fitted: bool
    known_miss: str
    """Why the model is known to miss it; empty if it is not."""

    def error(self, predicted: float) -> float | None:
        """By how much a prediction is outside of what was published, as a share; None where that is no figure."""
        edge = self.least if predicted < self.least else min(predicted, self.most)
        return None if math.isinf(edge) or not edge else predicted / edge - 1.0

    def within(self, predicted: float) -> bool:
        """Whether a prediction is inside the tolerance."""
        slack = self.tolerance + 1e-9
        return self.least - slack <= predicted <= self.most + slack


@dataclass(frozen=True, slots=True)
class Case:
    """A published measurement with its points."""

    id: str
    title: str
    setup: str
    source: str
    kind: CaseKind
    blind: bool
    points: tuple[Point, ...]
    product: str | None = None
    """Whose figures of the cost table it is predicted by; None for a case of no product."""

    @property
    def group(self) -> str:
        """The letters before the number."""
        return self.id.partition("-")[0]

    def fitted(self) -> Mapping[str, float]:
        """The points that a prediction may start from, by name."""
        return {point.name: point.least for point in self.points if point.fitted}


@cache
def load_cases() -> tuple[Case, ...]:
    """The cases that come with sevfleet."""
    return parse_cases((resources.files("cluster.validation") / "cases.toml").read_text("utf-8"))


def parse_cases(text: str) -> tuple[Case, ...]:
    """Cases from TOML. Raises CaseError naming case and field."""
    cases = tuple(_case(body) for body in tomllib.loads(text)["case"])
    for name, known in (("id", [one.id for one in cases]), ("result", [p.result for one in cases for p in one.points])):
        twice = {one for one in known if known.count(one) > 1}
        if twice:
            raise CaseError(f"{name}: {min(twice)} stands twice")
    return cases


def _case(body: Mapping[str, object]) -> Case:
    name = str(body.get("id", "a case"))
    for field in ("id", "title", "setup", "source"):
        if not isinstance(body.get(field), str) or not body[field]:
            raise CaseError(f"{name}: {field}: expected text")
    if body.get("kind") not in list(CaseKind) or not isinstance(body.get("blind"), bool):
        raise CaseError(f"{name}: kind, blind: expected one of {', '.join(CaseKind)}, and true or false")
    product = body.get("product")
    if product is not None and product not in PRODUCTS:
        raise CaseError(f"{name}: product: expected one of {', '.join(PRODUCTS)}")
    kind, points = CaseKind(str(body["kind"])), body.get("points")
    if not isinstance(points, list) or not points:
        raise CaseError(f"{name}: points: expected some")
    found = tuple(_point(name, point, kind) for point in points)
    if body["blind"] and all(point.fitted for point in found):
        raise CaseError(f"{name}: blind: expected a point that nothing was fitted to")
    return Case(
        name, str(body["title"]), str(body["setup"]), str(body["source"]), kind, bool(body["blind"]), found,
        None if product is None else str(product),
    )  # fmt: skip


def _point(case: str, body: Mapping[str, object], kind: CaseKind) -> Point:
    where = f"{case}: {body.get('name', 'a point')}"
    unknown = body.keys() - _FIELDS
    if unknown or not body.keys() >= {"name", "result", "unit"}:
        raise CaseError(f"{where}: expected the fields {', '.join(sorted(_FIELDS))}, got {', '.join(sorted(body))}")
    numbers = {key: body[key] for key in ("expected", "least", "most", "tolerance", "percent") if key in body}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CaseError(f"{where}: {key}: expected a number")
    figures = {key: float(str(value)) for key, value in numbers.items()}
    least = figures.get("expected", figures.get("least", -math.inf))
    most = figures.get("expected", figures.get("most", math.inf))
    if least > most or (kind is not CaseKind.MODEL_ONLY and math.isinf(least) and math.isinf(most)):
        raise CaseError(f"{where}: expected a published value or range")
    if kind is not CaseKind.MODEL_ONLY and ("tolerance" in figures) == ("percent" in figures):
        raise CaseError(f"{where}: tolerance: expected one, in the unit or as percent")
    nearer = min(abs(edge) for edge in (least, most))
    tolerance = figures["percent"] / 100 * nearer if "percent" in figures else figures.get("tolerance", 0.0)
    return Point(
        str(body["name"]), str(body["result"]), least, most, str(body["unit"]), tolerance,
        bool(body.get("fitted", False)), str(body.get("known_miss", "")),
    )  # fmt: skip


_FIELDS = {"name", "result", "expected", "least", "most", "unit", "tolerance", "percent", "fitted", "known_miss"}
