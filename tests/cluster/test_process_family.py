"""Who is below whom, and an end to all of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.process_family import end_of, family, is_stopped

PARENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[str]"]:
    """A process with one below it."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    below = family([process.pid])
    yield process
    end_of(below, 0.0)
    process.wait()


def test_a_family_is_a_process_and_all_below_it(parent: "subprocess.Popen[str]") -> None:
    assert len(family([parent.pid])) == 2
    assert family([parent.pid]) < family([os.getpid()])
    assert family([]) == frozenset()


def test_one_that_was_stopped_is_told_from_one_that_waits(parent: "subprocess.Popen[str]") -> None:
    assert not is_stopped(parent.pid)
    parent.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, parent.pid, os.WSTOPPED | os.WNOWAIT)
    assert is_stopped(parent.pid)
    parent.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, parent.pid, os.WCONTINUED | os.WNOWAIT)
    assert not is_stopped(parent.pid)


def test_one_that_lost_its_parent_is_ended_too(parent: "subprocess.Popen[str]") -> None:
    below = family([parent.pid])
    parent.kill()
    parent.wait()
    (orphan,) = (pid for pid, _ in below if pid != parent.pid)
    assert family([orphan])
    end_of(below, 0.0)
    end_of(below, 60.0)
    assert family([orphan]) == frozenset()


def test_a_process_that_got_the_number_of_one_that_is_gone_is_left_alone(parent: "subprocess.Popen[str]") -> None:
    end_of({(pid, start + 1) for pid, start in family([parent.pid])}, 0.0)
    assert parent.poll() is None
    assert len(family([parent.pid])) == 2
