"""Run a scenario: the one call that most users need."""

from __future__ import annotations

import time
from collections.abc import Collection

from cluster.compare import with_pairs
from cluster.progress import OnProgress, ShouldStop
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.session import Session
from node.record_buffer import LogWish


def run(
    scenario: Scenario,
    *,
    layout: str = "packed",
    workers: int | None = None,
    address: str | None = None,
    seed: int | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    time_limit_s: float | None = None,
    pairs: bool = False,
    log: bool | Collection[str] = False,
) -> Results:
    """Run ``scenario`` and return what it found.

    With ``pairs`` every VM that is not PLAIN is run again as PLAIN on the same
    host, with the same neighbours and seed, and the tables ``pairs`` and
    ``pair_parts`` hold what its generation cost it. With ``log`` the results have
    ``events``, the records of everybody or of the hosts and VMs named. The
    results do not depend on ``layout``, ``workers``, ``log`` or ``address``, which is
    HOST:PORT of a Ray cluster to run on in place of a Ray of its own. A run that
    ``should_stop`` or the wall-time limit ended has partial results. Raises
    RunFailedError, with partial results, if workers were lost again and again;
    ScenarioError for a scenario that cannot start.

    >>> from cluster import Scenario, run
    >>> run(Scenario.load("fleet.toml"), layout="inline").vms  # doctest: +SKIP
    """
    chosen = scenario if seed is None else scenario.with_seed(seed)
    stop = _stop_rule(should_stop, time_limit_s)
    named = {log} if isinstance(log, str) else set() if isinstance(log, bool) else set(log)
    wish = LogWish(everything=log is True, entities=frozenset(named))
    with Session(layout, workers, address) as session:
        results = session.run(chosen, None, on_progress, stop, wish)
        if not pairs or results.partial is not None:
            return results
        return with_pairs(session, chosen, results, on_progress, stop)


def _stop_rule(should_stop: ShouldStop | None, time_limit_s: float | None) -> ShouldStop:
    started = time.monotonic()

    def stop() -> str | None:
        if should_stop is not None and (reason := should_stop()) is not None:
            return reason
        if time_limit_s is not None and time.monotonic() - started >= time_limit_s:
            return f"stopped at the time limit of {time_limit_s:g} s"
        return None

    return stop
