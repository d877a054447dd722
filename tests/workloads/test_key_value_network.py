"""A key-value server and its clients on one host: what is answered is what was stored last, whoever is in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.generation import Generation
from node.guest import Guest, GuestSpec
from node.host import Host
from node.mac_address import mac_of
from node.program import ProgramSpec
from tests.node.toy_guests import MIB, SECOND, make_host, run
from workloads.key_value_messages import Answer, Kind, Message, parse
from workloads.library import PROGRAMS

SERVER = {"records": 64, "value_bytes": 64, "instructions_per_request": 1000}
CLIENT = {
    "server": "store", "records": 24, "value_bytes": 64, "batches": 20, "instructions_per_batch": 1000,
    "timeout_us": 10_000,
}  # fmt: skip


def start(host: Host, name: str, program: str, generation: Generation, vcpus: int = 1, **parameters: object) -> Guest:
    wanted = ProgramSpec(program, tuple(sorted(parameters.items())))  # type: ignore[arg-type]  # numbers and texts
    host.launch(GuestSpec(name, generation, vcpus, 128 * MIB, wanted, 11, network=True), lambda _: None, running=True)
    return host.guests[name]


def pair(generation: Generation = Generation.PLAIN, **changes: object) -> tuple[Host, Guest, Guest]:
    host = make_host(PROGRAMS)
    server = start(host, "store", "key-value-server", generation, **SERVER)
    return host, server, start(host, "client", "key-value-client", generation, **{**CLIENT, **changes})


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP])
def test_every_answer_is_what_was_stored_last(generation: Generation) -> None:
    host, server, client = pair(generation)
    run(host, 5 * SECOND)
    host.close(5 * SECOND)
    assert (client.state, client.shutdown_code, server.state) == ("stopped", 0, "running")
    assert 24 + 20 < client.units_of_work <= 24 + 20 * 4  # the load, and batches without keys twice
    assert server.units_of_work >= client.units_of_work


def test_programs_of_several_vcpus_have_a_card_and_records_each() -> None:
    host = make_host(PROGRAMS)
    start(host, "store", "key-value-server", Generation.SEV_SNP, vcpus=2, **SERVER)
    client = start(host, "client", "key-value-client", Generation.SEV_SNP, 2, **{**CLIENT, "server_vcpus": 2})
    run(host, 5 * SECOND)
    host.close(5 * SECOND)
    assert client.shutdown_code == 0
    assert client.network is not None
    assert client.network.frames_received == client.units_of_work > 2 * 44


@pytest.mark.parametrize("stopped", ["client", "store"])
def test_a_guest_that_stood_still_goes_on_where_it_was(stopped: str) -> None:
    host, server, client = pair(Generation.SEV_SNP)
    run(host, SECOND // 100)
    for rounds in range(3):
        host.pause(stopped)
        run(host, host.now_ns + SECOND // 50 * (1 + rounds))
        host.resume(stopped)
        run(host, host.now_ns + SECOND // 200)
    run(host, 5 * SECOND)
    assert (client.state, client.shutdown_code, server.state) == ("stopped", 0, "running")


def tapped(change: object, **changes: object) -> tuple[Guest, Guest]:
    """Server and client with somebody between them who does ``change`` to what the server's host delivers."""
    host, server, client = pair(**changes)
    deliver = host.network._deliver

    def tap(target: bytes, frames: tuple[bytes, ...], sent_ns: int) -> None:
        deliver(target, tuple(changed for frame in frames for changed in change(frame)), sent_ns)  # type: ignore[operator]

    host.network._deliver = tap  # type: ignore[method-assign]
    run(host, 5 * SECOND)
    host.close(5 * SECOND)
    return server, client


def test_frames_that_are_lost_are_asked_for_again_and_nothing_is_stored_twice() -> None:
    seen = []

    def lose(frame: bytes) -> tuple[bytes, ...]:
        seen.append(frame)
        return () if len(seen) % 5 == 0 else (frame,)

    _, client = tapped(lose)
    assert (client.state, client.shutdown_code) == ("stopped", 0)


def test_frames_that_come_twice_change_nothing() -> None:
    _, client = tapped(lambda frame: (frame, frame))
    assert (client.state, client.shutdown_code) == ("stopped", 0)


def test_a_changed_value_is_noticed_by_the_client() -> None:
    def change(frame: bytes) -> tuple[bytes, ...]:
        message = parse(frame)
        assert message is not None
        changed = message.answer is Answer.DONE and message.kind is Kind.GET
        return (frame[:-1] + bytes([frame[-1] ^ 1]) if changed else frame,)

    server, client = tapped(change)
    assert (client.state, client.shutdown_code, server.state) == ("stopped", 1, "running")


def test_a_store_that_never_reached_the_server_is_noticed_when_it_is_read() -> None:
    """Somebody keeps stores to himself, after the load phase, and acknowledges them."""
    host, _, client = pair(batches=200)
    deliver = host.network._deliver
    kept = []

    def pretend(target: bytes, frames: tuple[bytes, ...], sent_ns: int) -> None:
        for frame in frames:
            message = parse(frame)
            assert message is not None
            if message.kind is Kind.PUT and message.answer is Answer.REQUEST and message.number >= 8 * 6:
                kept.append(message)
                deliver(message.sender, (message.answered(Answer.DONE).pack(),), sent_ns)
            else:
                deliver(target, (frame,), sent_ns)

    host.network._deliver = pretend  # type: ignore[method-assign]
    run(host, 5 * SECOND)
    assert kept
    assert (client.state, client.shutdown_code) == ("stopped", 1)


def test_a_client_without_a_server_gives_up() -> None:
    host = make_host(PROGRAMS)
    client = start(host, "client", "key-value-client", Generation.PLAIN, **{**CLIENT, "most_resends": 3})
    run(host, 5 * SECOND)
    assert (client.state, client.shutdown_code) == ("stopped", 3)


OWN, OTHER = mac_of("store"), mac_of("client")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 255), st.integers(0, 60))
def test_frames_of_any_bytes_are_messages_or_none(data: bytes, value: int, at: int) -> None:
    parse(data)
    good = Message(OWN, OTHER, 7, Kind.PUT, Answer.REQUEST, 3, b"value").pack()
    assert parse(good) is not None
    spoiled = good[: at % len(good)] + bytes([value]) + good[at % len(good) + 1 :]
    found = parse(spoiled)
    assert found is None or found.pack() == spoiled


def test_a_server_answers_what_cannot_be_and_ignores_what_is_no_request() -> None:
    host = make_host(PROGRAMS)
    server = start(host, "store", "key-value-server", Generation.SEV_SNP, **SERVER)
    run(host, SECOND)
    answers: list[Message | None] = []
    host.network.uplink = lambda _, frames: answers.extend(map(parse, frames))
    said = [
        (1, Kind.GET, Answer.REQUEST, 5), (2, Kind.GET, Answer.REQUEST, 64), (3, Kind.PUT, Answer.REQUEST, 5, bytes(8)),
        (4, Kind.PUT, Answer.DONE, 5), (5, Kind.GET, Answer.REQUEST, 1 << 63), (6, Kind.GET, Answer.REQUEST, 5, b"?"),
        (7, Kind.PUT, Answer.REQUEST, 5, bytes(64)), (8, Kind.GET, Answer.REQUEST, 5),
    ]  # fmt: skip
    asked = [Message(OWN, OTHER, *one) for one in said]  # type: ignore[arg-type]  # as the fields are
    host.network.arrive(OWN, (b"rubbish" * 10, *(one.pack() for one in asked)), 0)
    run(host, 2 * SECOND)
    assert [(one.number, one.answer, one.value) for one in answers if one] == [
        (1, Answer.ABSENT, b""), (2, Answer.REFUSED, b""), (3, Answer.REFUSED, b""), (5, Answer.REFUSED, b""),
        (6, Answer.REFUSED, b""), (7, Answer.DONE, b""), (8, Answer.DONE, bytes(64)),
    ]  # fmt: skip
    assert server.state == "running"
