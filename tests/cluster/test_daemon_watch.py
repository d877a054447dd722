"""A process that ends while somebody waits for its service is found out at once, wherever the wait is."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.daemon_watch import DaemonEnded, DaemonWatch
from cluster.process_family import process_of

SOON_S = 5.0


def never(name: str) -> None:
    raise AssertionError(name)


@pytest.fixture
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as started:
        yield started
        started.kill()


def wait_deaf_to_errors(daemon: subprocess.Popen[bytes]) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(daemon.pid))
        daemon.kill()
        with contextlib.suppress(Exception):  # as Ray does, which then tries again
            time.sleep(30)


def wait_uninterrupted(daemon: subprocess.Popen[bytes]) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(daemon.pid))
        daemon.kill()
        while not watch.ended:
            time.sleep(0.01)


def fail_by(daemon: subprocess.Popen[bytes], watched: int) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(watched))
        daemon.kill()
        daemon.wait()
        raise ConnectionError("the server is gone")


def test_an_error_is_taken_to_come_of_a_process_that_is_gone(
    daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.daemon_watch.LOOK_S", 30.0)  # the error is there before anybody has looked
    with pytest.raises(DaemonEnded, match="server"):
        fail_by(daemon, daemon.pid)


def test_an_error_beside_processes_that_live_comes_out_as_it_is(daemon: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ConnectionError, match="the server is gone"):
        fail_by(daemon, os.getpid())


def test_who_waits_in_python_is_interrupted_whatever_it_catches(daemon: subprocess.Popen[bytes]) -> None:
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(DaemonEnded, match=r"^server ended unexpectedly$"):
        wait_deaf_to_errors(daemon)
    assert time.monotonic() - began < SOON_S
    assert signal.getsignal(signal.SIGALRM) is before


def stand_still_for(daemon: subprocess.Popen[bytes], seconds: float) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(daemon.pid))
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        daemon.send_signal(signal.SIGCONT)
        time.sleep(0.6)


def test_one_that_stands_still_is_as_good_as_one_that_ended(
    daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.daemon_watch.STILL_S", 1.0)
    began = time.monotonic()
    with pytest.raises(DaemonEnded, match=r"^server has stood still for \d s$"):
        stand_still_for(daemon, 30)
    assert time.monotonic() - began < SOON_S


def fail_beside_one_that_stands_still(daemon: subprocess.Popen[bytes]) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(daemon.pid))
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        raise ConnectionError("no answer in time")


def test_an_error_is_taken_to_come_of_a_process_that_stands_still(daemon: subprocess.Popen[bytes]) -> None:
    with pytest.raises(DaemonEnded, match=r"^server has stood still for \d s$"):
        fail_beside_one_that_stands_still(daemon)


def test_one_that_goes_on_in_time_is_left_alone(
    daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.daemon_watch.STILL_S", 5.0)
    stand_still_for(daemon, 0.5)


def test_a_block_whose_processes_live_is_left_alone(daemon: subprocess.Popen[bytes]) -> None:
    with DaemonWatch(never) as watch:
        watch.note("server", process_of(os.getpid()))
        watch.note("other", process_of(daemon.pid))
        time.sleep(0.25)
    daemon.kill()
    daemon.wait()
    time.sleep(0.25)  # nobody looks any more


def test_an_end_that_the_block_did_not_notice_is_raised_behind_it(
    daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "pthread_kill", lambda *_: None)
    with pytest.raises(DaemonEnded, match=r"^server ended unexpectedly$"):
        wait_uninterrupted(daemon)


def test_who_cannot_be_interrupted_is_given_up(
    daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.daemon_watch.GRACE_S", 0.1)
    given_up: list[str] = []
    caught: list[str] = []

    def wait_elsewhere() -> None:
        try:
            with DaemonWatch(given_up.append) as watch:
                watch.note("server", process_of(daemon.pid))
                daemon.kill()
                daemon.wait()
                while not given_up:
                    time.sleep(0.01)
        except DaemonEnded as ended:
            caught.append(str(ended))

    elsewhere = threading.Thread(target=wait_elsewhere)
    elsewhere.start()
    elsewhere.join(30)
    assert given_up == caught == ["server ended unexpectedly"]


WORDS = """
import os, sys
from cluster.last_words import LastWords
with LastWords("first line") as words:
    for line in sys.argv[2:]:
        words.change(line)
    if sys.argv[1] == "dies":
        os._exit(3)
"""


@pytest.mark.parametrize(
    ("arguments", "said"), [(("lives",), ""), (("dies",), "first line\n"), (("dies", "a", "the  last"), "the  last\n")]
)
def test_last_words_are_those_of_who_does_not_live(arguments: tuple[str, ...], said: str) -> None:
    ran = subprocess.run([sys.executable, "-c", WORDS, *arguments], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (3 if arguments[0] == "dies" else 0, said)
