"""Whoever finds out that Ray is gone: another is started and the run goes on, or ends with what there is."""

from collections import Counter

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended
from toy_hosts import digest, run_toys, toys

from cluster.actor_layout import packed
from cluster.inline_layout import InlineLayout
from cluster.layout import WorkerLostError
from cluster.ray_cluster import Missing

END_NS = 4000


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(run_toys(InlineLayout(), toys(4), end_ns=END_NS)[0])


@pytest.mark.parametrize(("method", "turns"), [("start", {1}), ("advance", {3, 12, 20}), ("collect", {1})])
def test_a_ray_found_gone_by_whoever_asks_a_worker_for_a_sign_of_life_is_replaced_whole(
    method: str, turns: set[int], expected: str
) -> None:
    """A worker that works longer than a look is asked for a sign of life: Ray may be gone by then, not before."""
    looks: Counter[PretendedCall] = Counter()
    began: list[PretendedCall] = []

    def fate(call: PretendedCall) -> object:
        if call.method != method:
            return None
        looks[call] += 1
        if cluster.actors.index(call.actor) % 2:
            # It answers in the very turn in which the loss is found out: what it says then is said.
            return Missing.WAITING if len(began) in turns and looks[call] == 1 else None
        began.extend([call] if looks[call] == 1 else [])
        if len(began) not in turns:
            return None
        cluster.lost = "Ray's process raylet ended unexpectedly" if looks[call] == 2 else ""
        return Missing.WAITING

    cluster = PretendedCluster(fate)
    log, _ = run_toys(on_pretended(packed(2), cluster), toys(4), end_ns=END_NS)
    assert digest(log) == expected
    assert cluster.starts == 1 + len(turns)


def test_a_ray_that_is_lost_again_and_again_is_given_up_with_one_line() -> None:
    def fate(call: PretendedCall) -> object:
        cluster.lost = "Ray's process raylet ended unexpectedly" if call.method == "advance" else ""
        return Missing.WAITING if call.method == "advance" else None

    cluster = PretendedCluster(fate)
    with pytest.raises(WorkerLostError, match=r"^all 2 workers were lost: Ray's process raylet ended unexpectedly$"):
        run_toys(on_pretended(packed(2), cluster), toys(4), end_ns=END_NS)
