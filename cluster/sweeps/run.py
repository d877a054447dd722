"""One run of a sweep, as a worker gets it and answers. Nothing here knows Ray."""

from __future__ import annotations

import tomllib
import traceback
from dataclasses import dataclass

from cluster.errors import SevfleetError, user_errors
from cluster.progress import OnProgress, ShouldStop
from cluster.scenario import Scenario
from cluster.simulation import run
from cluster.sweeps.figures import Value, values_of_run


@dataclass(frozen=True, slots=True)
class RunOrder:
    """A simulation to make; ``label`` is what it is called where a person reads it."""

    label: str
    text: str
    """The scenario as TOML."""
    seed: int
    pairs: bool


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a simulation found, or the ``reason`` why there is nothing, with the ``trace`` of a fault of ours."""

    digest: str | None = None
    values: tuple[Value, ...] = ()
    reason: str | None = None
    trace: str = ""


def outcome_of(
    order: RunOrder, on_progress: OnProgress | None = None, should_stop: ShouldStop | None = None
) -> RunOutcome | None:
    """Make the simulation in this process. Its own errors become reasons; None where it was stopped."""
    expected: tuple[type[Exception], ...] = (SevfleetError, *user_errors())
    try:
        scenario = Scenario.parse(tomllib.loads(order.text)).with_seed(order.seed)
        results = run(
            scenario, layout="inline", pairs=order.pairs, on_progress=on_progress, should_stop=should_stop
        )
    except Exception as error:  # noqa: BLE001 - one run's fault is no reason to lose the others
        if isinstance(error, expected):
            return RunOutcome(reason=" ".join(str(error).split()))
        reason = " ".join(f"internal error: {type(error).__name__}: {error}".split())
        return RunOutcome(reason=reason, trace="".join(traceback.format_exception(error)))
    if results.partial is not None:
        return None
    return RunOutcome(results.digest, values_of_run(results, order.pairs))


class RunWorker:
    """What a worker process holds: makes one run after another."""

    def run(self, order: RunOrder) -> RunOutcome | None:
        """The outcome of a run."""
        return outcome_of(order)
