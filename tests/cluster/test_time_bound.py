"""Code that would wait for ever is broken off, code in time is not, and nothing of the bound stays behind."""

import signal
import threading
import time

import pytest

from cluster.time_bound import within


def test_what_takes_too_long_is_broken_off_with_the_error_given() -> None:
    with pytest.raises(LookupError, match="late"), within(0.05, LookupError("late")):
        threading.Event().wait(60)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_is_in_time_goes_through_and_the_handler_of_before_is_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with within(0.05, LookupError("late")):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.1)


def test_outside_the_main_thread_there_is_no_bound() -> None:
    done: list[bool] = []

    def work() -> None:
        with within(0.01, LookupError("late")):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
