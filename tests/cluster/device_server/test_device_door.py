"""A listening device: who sends what is no frame, too much or nothing is hung up on, and the next is served."""

import asyncio
import contextlib

import pytest

from cluster.device_server.device_door import MOST_CONNECTIONS, DeviceDoor
from cluster.device_server.socket_frames import (
    CLIENT_HELLO,
    HEAD,
    MOST_PAYLOAD_BYTES,
    SERVER_HELLO,
    Command,
    Frame,
    FrameError,
    parse_head,
)
from tio.card import Card
from tio.device_identity import CardKind
from tio.doe import discovery_request
from tio.loose_device import LooseDevice
from tio.spdm import PCI_DOE, Packet
from tio.spdm.codes import Response

DOE = 2
GET_VERSION = PCI_DOE.wrap(Packet(bytes.fromhex("10840000")))
PATIENCE_S = 0.4


def card():
    return Card(CardKind.NIC, LooseDevice(), bytes, programmed=True)


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, command, payload=b"", transport=DOE):
        self.writer.write(Frame(command, transport, payload).pack())
        return await self.answer()

    async def answer(self):
        """The next frame; None where the device hung up."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            command, transport, size = HEAD.unpack(await asyncio.wait_for(self.reader.readexactly(HEAD.size), 5))
            return Frame(command, transport, await self.reader.readexactly(size))
        return None


def met(*clients, patience_s=PATIENCE_S, transport="pci-doe"):
    """Run clients one after another against one device; the door."""

    async def all_of_them():
        one = card()
        door = DeviceDoor(one.responder, transport, patience_s)
        port = await door.open("127.0.0.1", 0)
        try:
            for client in clients:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    await client(Client(reader, writer))
                finally:
                    writer.close()
        finally:
            await door.close()
        return door

    return asyncio.run(all_of_them())


async def well_behaved(client):
    assert (await client.ask(Command.TEST, CLIENT_HELLO)).payload == SERVER_HELLO
    answer = PCI_DOE.unwrap((await client.ask(Command.NORMAL, GET_VERSION)).payload)
    assert answer.payload[1] == Response.VERSION
    assert (await client.ask(Command.CONTINUE)).command == Command.CONTINUE
    assert await client.answer() is None


async def silent(client):
    assert await client.answer() is None


async def byte_by_byte(client):
    """Faster than the patience between two bytes, slower for the whole frame."""
    with contextlib.suppress(ConnectionError):
        for octet in Frame(Command.NORMAL, DOE, GET_VERSION).pack()[:10]:
            client.writer.write(bytes((octet,)))
            await client.writer.drain()
            await asyncio.sleep(PATIENCE_S / 4)
    assert await client.answer() is None


async def too_much(client):
    client.writer.write(HEAD.pack(Command.NORMAL, DOE, MOST_PAYLOAD_BYTES + 1))
    assert await client.answer() is None


async def half_a_frame(client):
    client.writer.write(Frame(Command.NORMAL, DOE, GET_VERSION).pack()[:15])
    client.writer.write_eof()
    assert await client.answer() is None


async def another_transport(client):
    assert await client.ask(Command.NORMAL, b"\x05\x10\x84\0\0", transport=1) is None


async def no_data_object(client):
    assert await client.ask(Command.NORMAL, b"no data object, and 28 bytes") is None


async def an_unknown_command(client):
    assert (await client.ask(0x1234)).command == Command.UNKNOWN
    assert (await client.ask(Command.TEST, CLIENT_HELLO)).payload == SERVER_HELLO


async def nonsense_in_an_object(client):
    for payload in (b"", b"\x10", bytes(64), b"\xff" * 64):
        for secured in (False, True):
            answer = await client.ask(Command.NORMAL, PCI_DOE.wrap(Packet(payload, secured=secured)))
            assert PCI_DOE.unwrap(answer.payload).payload[1] == Response.ERROR


@pytest.mark.parametrize(
    "hostile",
    [silent, byte_by_byte, too_much, half_a_frame, another_transport, no_data_object, an_unknown_command,
     nonsense_in_an_object],
)  # fmt: skip
def test_whoever_comes_first_the_next_is_served(hostile):
    met(hostile, well_behaved)


def test_a_frame_that_announces_too_much_is_not_waited_for():
    """Not even as long as the patience, which here is longer than the client's."""
    met(too_much, patience_s=60.0)
    assert parse_head(HEAD.pack(Command.NORMAL, DOE, MOST_PAYLOAD_BYTES)) == (Command.NORMAL, DOE, MOST_PAYLOAD_BYTES)
    with pytest.raises(FrameError):
        parse_head(HEAD.pack(Command.NORMAL, DOE, MOST_PAYLOAD_BYTES + 1))


def test_what_the_transport_does_not_carry_is_counted():
    assert met(no_data_object).malformed == 1


def test_each_client_meets_a_device_of_its_own():
    async def first(client):
        await client.ask(Command.NORMAL, GET_VERSION)

    async def second(client):
        digests = PCI_DOE.wrap(Packet(bytes.fromhex("12810000")))
        answer = PCI_DOE.unwrap((await client.ask(Command.NORMAL, digests)).payload)
        assert answer.payload[1] == Response.ERROR

    met(first, second)


def test_a_requester_may_end_it():
    async def ends(client):
        assert (await client.ask(Command.SHUTDOWN)).command == Command.SHUTDOWN

    door = met(ends)
    assert door.done.result() == 0


async def chatty(client):
    """Says much that is none of SPDM's, and never waits for long."""
    with contextlib.suppress(ConnectionError):
        for _ in range(10):
            if await client.ask(Command.TEST, CLIENT_HELLO) is None:
                return
            await asyncio.sleep(PATIENCE_S / 4)
    raise AssertionError("it was served for longer than the patience")


async def discovering(client):
    """Asks the mailbox what it speaks, and never anything else."""
    asked = discovery_request(0).pack()
    with contextlib.suppress(ConnectionError):
        for _ in range(10):
            if await client.ask(Command.NORMAL, asked) is None:
                return
            await asyncio.sleep(PATIENCE_S / 4)
    raise AssertionError("it was served for longer than the patience")


@pytest.mark.parametrize("idler", [chatty, discovering])
def test_nothing_but_spdm_buys_time(idler):
    met(idler, well_behaved)


def test_who_speaks_spdm_stays_for_longer_than_the_patience():
    async def steady(client):
        for _ in range(5):
            assert await client.ask(Command.NORMAL, GET_VERSION) is not None
            await asyncio.sleep(PATIENCE_S / 2)

    met(steady, patience_s=2 * PATIENCE_S)


def beside(count, crowd, main, responder=None):
    """Have one more come to a device where so many others are, of whom each did at first what ``crowd`` says."""

    async def all_of_them():
        door = DeviceDoor(responder or card().responder, "pci-doe", 30.0)
        port = await door.open("127.0.0.1", 0)
        clients = []

        async def come():
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))

        try:
            for _ in range(count):
                await come()
                await crowd(clients)
            await come()
            await main(clients)
        finally:
            for one in clients:
                one.writer.close()
            await door.close()

    asyncio.run(all_of_them())


@pytest.mark.parametrize("says", [None, Command.TEST, Command.NORMAL])
def test_others_who_are_there_keep_nobody_waiting(says):
    """Their patience is half a minute, and the one that comes is served before any of it is over."""

    async def there(clients):
        if says is not None:
            assert await clients[-1].ask(says, GET_VERSION if says == Command.NORMAL else CLIENT_HELLO) is not None

    async def comes(clients):
        await well_behaved(clients[-1])

    beside(3, there, comes)


@pytest.mark.parametrize("silent_one", [0, 5])
def test_there_are_only_so_many_and_the_quietest_makes_room(silent_one):
    async def there(clients):
        if len(clients) - 1 != silent_one:
            assert await clients[-1].ask(Command.NORMAL, GET_VERSION) is not None
        if len(clients) == MOST_CONNECTIONS:
            # The device has heard of all others since the silent one came.
            for other in clients[:silent_one]:
                assert await other.ask(Command.NORMAL, GET_VERSION) is not None

    async def comes(clients):
        await well_behaved(clients[-1])
        quietest = clients[silent_one]
        assert await quietest.answer() is None
        for other in clients[:-1]:
            assert other is quietest or await other.ask(Command.NORMAL, GET_VERSION) is not None

    beside(MOST_CONNECTIONS, there, comes)


def test_a_thousand_requests_in_one_piece_do_not_go_before_everybody_elses():
    served = []

    def noted(responder, number):
        answer = responder.answer
        responder.answer = lambda *asked: (served.append(number), answer(*asked))[1]
        return responder

    one = card()

    async def there(clients):
        clients[-1].writer.write(Frame(Command.NORMAL, DOE, GET_VERSION).pack() * 1000)

    async def comes(clients):
        await well_behaved(clients[-1])

    beside(1, there, comes, lambda binding, number: noted(one.responder(binding, number), number))
    assert served.index(2) < 500
