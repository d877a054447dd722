"""A listening device: who sends what is no frame, too much or nothing is hung up on, and the next is served."""

import asyncio
import contextlib

import pytest

from cluster.device_server.device_door import MOST_WAITING, DeviceDoor
from cluster.device_server.socket_frames import CLIENT_HELLO, HEAD, MOST_PAYLOAD_BYTES, SERVER_HELLO, Command, Frame
from tio.card import Card
from tio.device_identity import CardKind
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


def test_only_so_many_wait():
    async def crowd():
        one = card()
        door = DeviceDoor(one.responder, "pci-doe", 30.0)
        port = await door.open("127.0.0.1", 0)
        writers = []
        try:
            writers += [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(MOST_WAITING)]
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            assert await Client(reader, writer).answer() is None
        finally:
            for writer in writers:
                writer.close()
            await door.close()

    asyncio.run(crowd())
