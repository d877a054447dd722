"""Signals that arrive in a block are given to the program's own handler after it."""

import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest

from cluster.held_signals import HELD, HeldSignals


@pytest.mark.parametrize("number", HELD)
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def handler(arrived: int, _: FrameType | None) -> None:
        told.append(arrived)

    before = signal.signal(number, handler)
    try:
        with HeldSignals() as held:
            assert not held.arrived
            signal.raise_signal(number)
            assert held.arrived
            signal.raise_signal(number)
            told.append("block")
        assert told == ["block", number, number]
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_ctrl_c_is_an_interrupt_as_ever_only_later() -> None:
    done = False

    def block() -> None:
        nonlocal done
        with HeldSignals():
            signal.raise_signal(signal.SIGINT)
            done = True

    # A process that was started in the background of a shell ignores the signal, and so would the test.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            block()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def test_a_handler_that_somebody_put_in_its_place_is_taken_away_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with HeldSignals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_may_use_it_too_and_handlers_stay() -> None:
    seen: list[object] = []

    def use() -> None:
        with HeldSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_what_is_unheard_arrives_after_the_block_and_children_hear_what_is_said_to_them_alone() -> None:
    program = """if True:
        import os, signal, subprocess, sys
        from cluster.held_signals import unheard
        def told(number, _):
            print("told", number, flush=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, told)
        with unheard():
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
            mask = "print('child', *map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())), flush=True)"
            group = "print(os.getpgid(0) == os.getpid() != os.getsid(0))"
            child = f"import os, signal; {mask}; {group}"
            subprocess.run([sys.executable, "-c", child], preexec_fn=lambda: None)
        subprocess.run([sys.executable, "-c", child], preexec_fn=lambda: None)
        print("end", *signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    first, alone, *between, after, together, last = done.stdout.splitlines()
    assert (first, alone, sorted(between)) == ("child 1", "True", ["told 1", "told 15"]), done.stderr
    assert (after, together, last) == ("child", "False", "end"), done.stderr
