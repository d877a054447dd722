"""A hypervisor's part in what the TSM says to a device: it carries packets, and gives the identical command again.

The firmware puts a packet into the request buffer and answers SPDM_REQUEST. The hypervisor brings it to the device's
mailbox and the answer into the response buffer. It sees every byte; those of a session are sealed. Source:
``spec/tio/tio-overview.md``, section 3.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TypeVar

from node import operations as op
from node.doe_driver import DoeDriver, MailboxFailed
from node.expected_answers import expect_done
from node.hypervisor_port import Answers, Batch, LaunchRefused, Task
from node.tio_memory import TioMemory
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand, command_name
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES
from psp.tsm.exchange_records import (
    PAYLOAD_UNIT,
    BufferHeader,
    ObjectId,
    ResultObject,
    pack_message,
    parse_message,
)
from psp.tsm.scatter_address import NULL, data_page, pack_list, scatter_page
from psp.tsm.tio_buffers import SpdmOrder
from tio.doe import PCI_SIG, DataObject, ObjectType
from tio.spdm import Packet

MOST_EXCHANGES = 1 << 10
"""Of one command; none needs as many."""
REQUEST_PAGES, RESPONSE_PAGES, OUTPUT_PAGES = 4, 4, 4
MOST_OUTPUT_PAGES = 32
_TYPES = {False: ObjectType.CMA_SPDM, True: ObjectType.SECURED_CMA_SPDM}
_Order = TypeVar("_Order", bound=SpdmOrder)


class TioRefused(LaunchRefused):
    """The firmware refused a TIO command, or the device did not answer; ``status`` is the firmware's."""

    def __init__(self, command: int, status: Status, why: str = "") -> None:
        super().__init__(f"{command_name(command)}: {why or status.name}")
        self.status = status


class _Buffer:
    """Pages between hypervisor and firmware, and the page that lists them."""

    def __init__(self, pages: tuple[int, ...], list_page: int) -> None:
        self.pages = pages
        self.list_page = list_page
        self.address = scatter_page(list_page)

    def read(self) -> tuple[op.HypervisorOperation, ...]:
        """Loads of all of it."""
        return tuple(op.HostRead(spa, PAGE_BYTES) for spa in self.pages)


class TioCarrier:
    """What one device's commands go through: the exchange's buffers, for as long as the device is connected."""

    def __init__(self, memory: TioMemory, mailbox: DoeDriver) -> None:
        self._memory = memory
        self._mailbox = mailbox
        self._request: _Buffer | None = None
        self._response: _Buffer | None = None
        self._scratch = NULL
        self._scratch_page = 0
        self._output: _Buffer | None = None

    def open(self) -> Task:
        """Take the buffers."""
        self._request = yield from self._lent(REQUEST_PAGES)
        (scratch,) = yield from self._memory.lend((BufferHeader(capacity=PAGE_BYTES).pack(),))
        self._scratch, self._scratch_page = data_page(scratch), scratch
        self._output = yield from self._lent(OUTPUT_PAGES)
        self._response = yield from self._listed(self._memory.take(RESPONSE_PAGES))
        empty = BufferHeader(capacity=RESPONSE_PAGES * PAGE_BYTES).pack()
        yield (op.HostWrite(self._response.pages[0], empty),)

    @property
    def is_open(self) -> bool:
        """Whether it has its buffers."""
        return self._response is not None

    def close(self) -> Task:
        """Give them back."""
        assert self._request is not None
        assert self._response is not None
        assert self._output is not None
        lent = (*self._request.pages, *self._output.pages, self._scratch_page)
        yield from self._memory.reclaim(lent)
        lists = (self._request.list_page, self._output.list_page, self._response.list_page)
        yield from self._memory.give_back((*self._response.pages, *lists))
        self._request = self._response = self._output = None

    def fetch(self, command: SnpCommand, order: _Order, wanted: ObjectId) -> Generator[Batch, Answers, bytes]:
        """Carry out a command that has a result: that object's bytes, without its head. Raises TioRefused."""
        yield from self.call(command, order)
        assert self._output is not None
        _, payload = self._parsed((yield self._output.read()))
        head = ResultObject.parse(payload)
        if head.object_id != wanted:
            raise TioRefused(command, Status.SPDM_ERROR, f"expected {wanted.name}, found object {head.object_id}")
        return payload[ResultObject.SIZE : head.length]

    def call(self, command: SnpCommand, order: _Order) -> Task:
        """Carry out a command. Raises TioRefused."""
        for _ in range(MOST_EXCHANGES):
            assert self._request is not None
            assert self._response is not None
            assert self._output is not None
            whole = replace(
                order, length=order.SIZE, request=self._request.address, response=self._response.address,
                scratch=self._scratch, output=self._output.address,
            )  # fmt: skip
            status = yield from self.submit(command, whole)
            if status is Status.SPDM_REQUEST:
                yield from self._exchange(command)
            elif status is Status.EXPAND_BUFFER_LENGTH_REQUEST:
                yield from self._expand(command)
            elif status is not Status.SUCCESS:
                raise TioRefused(command, status)
            else:
                return
        raise TioRefused(command, Status.SPDM_ERROR, f"no end after {MOST_EXCHANGES} exchanges")

    def submit(self, command: int, buffer: ByteLayout) -> Generator[Batch, Answers, Status]:
        """One giving of a command: the firmware's status."""
        (answer,) = yield (op.PspCommand(command, self._memory.command_page, buffer.pack()),)
        if not isinstance(answer, op.PspAnswer):
            raise TioRefused(command, Status.INVALID_ADDRESS, repr(answer))
        return Status(answer.status)

    # Within.

    def _exchange(self, command: SnpCommand) -> Task:
        assert self._request is not None
        assert self._response is not None
        header, payload = self._parsed((yield self._request.read()))
        try:
            asked = parse_message(ObjectId.REQUEST, payload[: header.payload])
            found = yield from self._mailbox.exchange(DataObject(PCI_SIG, _TYPES[asked.secured], asked.payload))
        except (PspError, MailboxFailed) as failed:
            raise TioRefused(command, Status.SPDM_ERROR, str(failed)) from None
        secured = found.object_type == ObjectType.SECURED_CMA_SPDM
        answer = pack_message(ObjectId.RESPONSE, Packet(found.payload, secured=secured))
        whole = answer.ljust(-(-len(answer) // PAYLOAD_UNIT) * PAYLOAD_UNIT, b"\0")
        capacity = len(self._response.pages) * PAGE_BYTES
        data = BufferHeader(capacity=capacity, payload=len(whole)).pack() + whole
        if len(data) > capacity:
            raise TioRefused(command, Status.RESPONSE_TOO_LARGE)
        writes = [
            op.HostWrite(spa, data[at : at + PAGE_BYTES])
            for at, spa in zip(range(0, len(data), PAGE_BYTES), self._response.pages, strict=False)
        ]
        expect_done(writes, (yield tuple(writes)))

    def _expand(self, command: SnpCommand) -> Task:
        """The result needs more room: the header says how much."""
        assert self._output is not None
        header, _ = self._parsed((yield self._output.read()[:1]))
        pages = -(-header.capacity // PAGE_BYTES)
        if not len(self._output.pages) < pages <= MOST_OUTPUT_PAGES:
            raise TioRefused(command, Status.EXPAND_BUFFER_LENGTH_REQUEST)
        before, self._output = self._output, (yield from self._lent(pages))
        yield from self._memory.reclaim(before.pages)
        yield from self._memory.give_back((before.list_page,))

    def _lent(self, pages: int) -> Generator[Batch, Answers, _Buffer]:
        header = BufferHeader(capacity=pages * PAGE_BYTES).pack()
        return (yield from self._listed((yield from self._memory.lend((header, *[b""] * (pages - 1))))))

    def _listed(self, pages: tuple[int, ...]) -> Generator[Batch, Answers, _Buffer]:
        (list_page,) = self._memory.take(1)
        yield (op.HostWrite(list_page, pack_list([data_page(spa) for spa in pages])),)
        return _Buffer(pages, list_page)

    @staticmethod
    def _parsed(answers: Answers) -> tuple[BufferHeader, bytes]:
        if not all(isinstance(answer, bytes) for answer in answers):
            raise LaunchRefused(f"HostRead: {answers!r}")
        data = b"".join(answers)  # type: ignore[arg-type]  # all are bytes
        return BufferHeader.parse(data), data[BufferHeader.SIZE :]
