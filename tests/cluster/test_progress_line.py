"""What the line of a running simulation says."""

from cluster.progress import Progress
from cluster.progress_line import described

HOUR_NS = 3600 * 10**9


def test_round_trips_are_told_where_hosts_wait_for_one_another_and_else_nothing_of_them() -> None:
    machines = {("running", "SEV_SNP"): 3, ("launching", "SEV"): 2}
    waiting = described(Progress(HOUR_NS // 2, HOUR_NS, 1200, 5000, 34_567, machines, troubles=("worker 1 is late",)))
    assert waiting.endswith("3 machines running, 34,567 events, 1,200 round trips; worker 1 is late")
    alone = described(Progress(HOUR_NS // 2, HOUR_NS, 0, 5000, 34_567, machines))
    assert alone.endswith("3 machines running, 34,567 events")
    assert described(Progress(0, HOUR_NS, note="starting Ray")) == "starting Ray"
    late = Progress(0, HOUR_NS, note="starting packed", troubles=("worker 1 starts, for 6 s now", "worker 2 was lost"))
    assert described(late) == "starting packed; worker 1 starts, for 6 s now; worker 2 was lost"
