"""An inbox: letters take effect before local events of their nanosecond, in an order of their own."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from cluster.entity import NEVER, Advance, Message
from cluster.inbox import Inbox, ProtocolViolationError


def letter(time_ns: int, sender: str = "a", sequence: int = 1) -> Message:
    return Message(time_ns, sender, sequence, "host", "letter")


def inbox_of(env: simpy.Environment, receive: Callable[[Message], None]) -> Inbox:
    return Inbox(env, receive, [], lambda _: NEVER)


def story(deliveries: list[tuple[int, tuple[Message, ...]]], ticks: tuple[int, ...] = ()) -> list[Any]:
    """What happened, letters handed over when the clock stood at the given times."""
    env = simpy.Environment(initial_time=0)
    told: list[Any] = []
    inbox = inbox_of(env, lambda message: told.append((env.now, message.sender, message.sequence)))

    def tick(_: simpy.Event) -> None:
        told.append((env.now, "tick"))

    for at in ticks:
        env.timeout(at).callbacks.append(tick)
    for at, messages in deliveries:
        inbox.advance(at, 1000)
        for message in messages:
            inbox.deliver(message)
    inbox.advance(NEVER, 1000)
    return told


def test_a_letter_comes_before_local_events_of_its_nanosecond_that_were_planned_first() -> None:
    assert story([(0, (letter(5),))], ticks=(5, 5)) == [(5, "a", 1), (5, "tick"), (5, "tick")]


def test_a_letter_comes_before_what_simpy_calls_urgent() -> None:
    env = simpy.Environment(initial_time=0)
    told: list[str] = []

    def process() -> Any:
        told.append("process")
        yield env.timeout(1)

    env.process(process())
    inbox = inbox_of(env, lambda _: told.append("letter"))
    inbox.deliver(letter(0))
    assert inbox.advance(1, 2).events == 2
    assert told == ["letter", "process"]


def test_letters_of_one_nanosecond_are_one_event_of_the_budget() -> None:
    env = simpy.Environment(initial_time=0)
    told: list[int] = []
    inbox = inbox_of(env, lambda message: told.append(message.sequence))
    for message in (letter(5, sequence=2), letter(5, sequence=1), letter(6, sequence=3)):
        inbox.deliver(message)
    assert (inbox.advance(10, 1), told, env.now) == (Advance(6, 6, 1), [1, 2], 5)
    assert (inbox.advance(6, 10), told) == (Advance(6, 6, 0), [1, 2])
    assert (inbox.advance(7, 10), told) == (Advance(7, NEVER, 1), [1, 2, 3])
    assert (inbox.events, inbox.next_event_ns()) == (2, NEVER)


def test_what_is_said_comes_with_what_is_promised_and_letters_may_be_answered_at_once() -> None:
    env = simpy.Environment(initial_time=0)
    outbox: list[Message] = []
    inbox = Inbox(env, outbox.append, outbox, lambda next_ns: next_ns + 3)
    inbox.deliver(letter(5))
    inbox.deliver(letter(8))
    assert inbox.earliest_output_ns() == 5
    env.timeout(6)
    assert inbox.advance(6, 10) == Advance(6, 6, 1, (letter(5),))
    assert inbox.earliest_output_ns() == 8
    env.timeout(8)
    assert inbox.advance(10, 10) == Advance(10, 13, 2, (letter(8),))
    assert inbox.earliest_output_ns() == 16


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_letters_of_one_nanosecond_go_by_sender_and_sequence_however_handed_over(order: tuple[int, ...]) -> None:
    letters = [letter(7, "a", 2), letter(7, "a", 10), letter(7, "b", 1), letter(9, "a", 1)]
    one_by_one = [(at, (letters[index],)) for at, index in enumerate(order)]
    assert story(one_by_one, ticks=(7,)) == [(7, "a", 2), (7, "a", 10), (7, "b", 1), (7, "tick"), (9, "a", 1)]


@given(
    st.sets(st.tuples(st.integers(20, 26), st.sampled_from("abc"), st.integers(1, 3)), max_size=8),
    st.lists(st.integers(0, 19), min_size=8, max_size=8),
)
def test_windows_of_handing_over_make_no_difference(keys: set[tuple[int, str, int]], moments: list[int]) -> None:
    letters = [letter(*key) for key in sorted(keys)]
    ticks = tuple(range(0, 30, 2))
    scattered = sorted(zip(moments, ((one,) for one in letters), strict=False))
    assert story(scattered, ticks) == story([(0, tuple(letters))], ticks)


@given(
    st.sets(st.tuples(st.integers(1, 9), st.integers(1, 20)), max_size=8),
    st.lists(st.integers(0, 10), max_size=6),
    st.booleans(),
)
def test_a_letter_that_is_taken_at_once_makes_no_difference(
    keys: set[tuple[int, int]], ticks: list[int], one_waits: bool
) -> None:
    def story_of(at_once: bool) -> list[Any]:
        env = simpy.Environment(initial_time=0)
        told: list[Any] = []
        outbox: list[Message] = []

        def receive(message: Message) -> None:
            told.append((env.now, message.sequence))
            outbox.append(message)
            env.timeout(message.sequence % 3).callbacks.append(lambda _: told.append((env.now, "after")))

        inbox = Inbox(env, receive, outbox, lambda _: NEVER)
        for at in ticks:
            env.timeout(at).callbacks.append(lambda _: told.append((env.now, "tick")))
        if one_waits:
            inbox.deliver(letter(7, "a", 99))
        for _, group in itertools.groupby(sorted(keys), lambda key: key[0]):
            for number, key in enumerate(group):
                if not number:
                    told.append(inbox.advance(key[0], 1000))
                if at_once:
                    assert inbox.next_event_ns() >= key[0]
                    next_ns, done, _ = inbox.answer(letter(key[0], "a", key[1]))
                    assert next_ns == inbox.next_event_ns()
                    assert done == 0 or not number
                else:
                    inbox.deliver(letter(key[0], "a", key[1]))
        told.append((inbox.advance(20, 1000).next_event_ns, inbox.events))
        return [one for one in told if not isinstance(one, Advance)]

    assert story_of(at_once=True) == story_of(at_once=False)


def test_a_letter_from_the_past_is_not_taken_at_once_either() -> None:
    env = simpy.Environment(initial_time=0)
    env.timeout(10)
    env.step()
    with pytest.raises(ProtocolViolationError, match=r"host: got a message for 9 ns at 10 ns"):
        inbox_of(env, lambda _: None).answer(letter(9))


def test_the_first_letter_not_opened_yet_is_known() -> None:
    env = simpy.Environment(initial_time=0)
    inbox = inbox_of(env, lambda _: None)
    assert inbox.next_ns == NEVER
    inbox.deliver(letter(8))
    inbox.deliver(letter(3))
    assert inbox.next_ns == 3
    inbox.advance(8, 1000)
    assert inbox.next_ns == 8
    inbox.advance(9, 1000)
    assert inbox.next_ns == NEVER


def test_a_letter_from_the_past_is_refused_by_name() -> None:
    env = simpy.Environment(initial_time=0)
    env.timeout(10)
    env.step()
    with pytest.raises(ProtocolViolationError, match=r"host: got a message for 9 ns at 10 ns"):
        inbox_of(env, lambda _: None).deliver(letter(9))
