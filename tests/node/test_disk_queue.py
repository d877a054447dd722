"""One drive serves all VMs of its host: by bytes or by requests, whichever takes longer, one after another."""

from collections import defaultdict

import pytest
from toy_guests import COSTS, MIB, make_host, run, script, start

from node import operations as op
from node.disk_queue import DiskQueue
from node.generation import Generation
from node.mechanism import Mechanism

LARGE = op.BlockRead(0, MIB // op.BLOCK_BYTES, 0)
SMALL = op.BlockWrite(0, 1, 0)
LARGE_NS = MIB / (5433 * MIB) * 1e9
SMALL_NS = 1e9 / 244_000


def waits(*calls):
    queue, lost = DiskQueue(COSTS), defaultdict(float)
    return [queue.wait(now, batch, lost) for now, batch in calls], lost[Mechanism.DISK_WAIT], queue


def test_a_drive_that_is_idle_makes_nobody_wait():
    found, lost, queue = waits((0, (LARGE,)), (10**9, (SMALL,)))
    assert (found, lost) == ([0, 0], 0)
    assert queue.busy_ns == pytest.approx(LARGE_NS + SMALL_NS)


def test_requests_wait_for_those_before_them():
    found, lost, _ = waits((0, (LARGE, LARGE)), (0, (SMALL,)), (1000, (SMALL,)))
    assert found == [0, round(2 * LARGE_NS), round(2 * LARGE_NS + SMALL_NS - 1000)]
    assert lost == sum(found)


def test_other_operations_do_not_ask_the_drive():
    found, _, queue = waits((0, (op.Read(0, MIB), op.Write(0, b"x"))))
    assert (found, queue.busy_ns) == ([0], 0)


def test_two_vms_that_read_at_once_share_the_drive_and_the_second_waits():
    def reader(placement, registers):
        registers.r13 += 1
        for _ in range(20):
            yield (op.BlockRead(0, 256, placement.shared_gpa),)
        return op.Shutdown(0)

    def lost_by(count):
        host = make_host({"reader": script(reader)}, product="Milan")
        guests = [start(host, f"vm{number}", Generation.PLAIN, "reader") for number in range(count)]
        run(host, 10**9)
        return [guest.lost_ns[Mechanism.DISK_WAIT] for guest in guests]

    assert lost_by(1) == [0]
    # Twelve requests of a mebibyte at once keep the drive busy for longer than one of them takes.
    assert sum(lost_by(12)) > 0
