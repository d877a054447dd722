"""A disk that does not take what a worker is told: it is missed only when a worker is lost, and then said."""

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended
from toy_hosts import digest, run_toys, toys

from cluster.actor_layout import packed
from cluster.inline_layout import InlineLayout
from cluster.journal import Journal
from cluster.layout import WorkerLostError
from cluster.ray_cluster import Missing

FULL = "/tmp: No space left on device"
END_NS = 4000


@pytest.fixture(autouse=True)
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "append", lambda self, *_: setattr(self, "wrong", FULL))


def test_a_run_that_loses_nobody_ends_as_any() -> None:
    log, _ = run_toys(on_pretended(packed(2), PretendedCluster()), toys(4), end_ns=END_NS)
    assert digest(log) == digest(run_toys(InlineLayout(), toys(4), end_ns=END_NS)[0])


@pytest.mark.parametrize(
    ("whole", "line"),
    [
        (False, "worker 2 was lost: its process ended unexpectedly; what it was told could not be kept for another: "),
        (True, "all 2 workers were lost: gone; what it was told could not be kept for another: "),
    ],
)
def test_a_worker_that_is_lost_then_is_named_with_the_reason(
    line: str, *, whole: bool
) -> None:
    def fate(call: PretendedCall) -> object:
        if call.method != "advance" or len(call.actor.calls) != 9:
            return None
        cluster.lost = "gone" if whole else ""
        return Missing.LOST if not whole and call.actor is cluster.actors[1] else None

    cluster = PretendedCluster(fate)
    layout = on_pretended(packed(2), cluster)
    with pytest.raises(WorkerLostError) as caught:
        run_toys(layout, toys(4), end_ns=END_NS)
    assert str(caught.value) == line + FULL
    rows = layout.salvage(END_NS).get("log", [])
    assert {row["host"] for row in rows} == (set() if whole else {"toy-0", "toy-2"})
