"""The NVMe controller, driven with bytes written out by hand from the specification's figures."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.nvme import NvmeController
from tio.nvme_admin import NvmeSettings
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

PAGE = 4096
ASQ, ACQ, IOSQ, IOCQ, DATA, LIST = (0x10000 * n for n in range(1, 7))
DNR = 1 << 14


def sqe(opcode, *, cid=7, nsid=1, prp1=0, prp2=0, words=(), flags=0):
    """NVMe 1.4, figures 104 to 106, without help of the code under test."""
    entry = bytearray(64)
    struct.pack_into("<BBHI", entry, 0, opcode, flags, cid, nsid)
    struct.pack_into("<QQ", entry, 24, prp1, prp2)
    struct.pack_into(f"<{len(words)}I", entry, 40, *words)
    return bytes(entry)


class Host:
    """A host with admin queues of ``depth`` and one I/O queue pair, which polls."""

    def __init__(self, memory, namespace=None, depth=8, io_queues=1, more=(), **offers):
        self.memory = memory
        self.namespace = namespace or NvmeNamespace(1024)
        offered = NvmeSettings(max_io_queues=io_queues, **offers)
        self.controller = NvmeController(memory, self.namespace, offered, more)
        self.depth = depth
        self.tails = {0: 0, 1: 0}
        self.heads = {0: 0, 1: 0}
        self.phases = {0: 1, 1: 1}
        self.controller.write_register(0x24, depth - 1 << 16 | depth - 1)
        self.controller.write_register(0x28, ASQ, 8)
        self.controller.write_register(0x30, ACQ, 8)
        self.controller.write_register(0x14, 1 | 6 << 16 | 4 << 20)

    def with_io(self):
        size = self.depth - 1 << 16 | 1
        assert self.command(0, sqe(0x05, nsid=0, prp1=IOCQ, words=(size, 1))) == 0
        assert self.command(0, sqe(0x01, nsid=0, prp1=IOSQ, words=(size, 1 << 16 | 1))) == 0
        return self

    def put(self, queue, entry):
        base = (ASQ, IOSQ)[queue]
        self.memory.write(base + self.tails[queue] * 64, entry)
        self.tails[queue] = (self.tails[queue] + 1) % self.depth

    def take(self, queue):
        """The next completion as (status field, cid, sq head, sq id, DW0), or None."""
        base = (ACQ, IOCQ)[queue]
        result, _, head, sq, cid, word = struct.unpack("<IIHHHH", self.memory.read(base + self.heads[queue] * 16, 16))
        if word & 1 != self.phases[queue]:
            return None
        self.heads[queue] += 1
        if self.heads[queue] == self.depth:
            self.heads[queue], self.phases[queue] = 0, self.phases[queue] ^ 1
        return word >> 1, cid, head, sq, result

    def ring(self, queue):
        return self.controller.write_register(0x1000 + 8 * queue, self.tails[queue])

    def ring_head(self, queue):
        return self.controller.write_register(0x1004 + 8 * queue, self.heads[queue])

    def command(self, queue, entry):
        """The status field of one command, served on its own."""
        self.put(queue, entry)
        self.ring(queue)
        answer = self.take(queue)
        assert answer is not None
        assert answer[1] == struct.unpack_from("<H", entry, 2)[0]
        self.ring_head(queue)
        return answer[0]


@pytest.fixture
def host(host_memory):
    return Host(host_memory)


@pytest.fixture
def disk(host):
    return host.with_io()


def test_capabilities_and_version_stand_where_the_specification_puts_them(host):
    cap = host.controller.read_register(0x00, 8)
    assert cap & 0xFFFF == 1023
    assert cap >> 16 & 1 == 1
    assert cap >> 37 & 1 == 1
    assert cap >> 48 & 0xFF == 0
    assert host.controller.read_register(0x08) == 0x0001_0400
    assert host.controller.read_register(0x1C) == 1


def test_identify_names_the_controller_and_the_namespace(host):
    assert host.command(0, sqe(0x06, nsid=0, prp1=DATA, words=(1,))) == 0
    page = host.memory.read(DATA, PAGE)
    assert page[4:24] == b"SEVFLEET0".ljust(20)
    assert page[77] == 9
    assert page[512:514] == b"\x66\x44"
    assert int.from_bytes(page[516:520], "little") == 1
    assert host.command(0, sqe(0x06, nsid=1, prp1=DATA, words=(0,))) == 0
    page = host.memory.read(DATA, PAGE)
    assert [int.from_bytes(page[offset : offset + 8], "little") for offset in (0, 8, 16)] == [1024] * 3
    assert page[128:132] == bytes((0, 0, 9, 0))
    assert host.command(0, sqe(0x06, nsid=0, prp1=DATA, words=(2,))) == 0
    assert host.memory.read(DATA, 8) == bytes((1, 0, 0, 0, 0, 0, 0, 0))
    assert host.command(0, sqe(0x06, nsid=1, prp1=DATA, words=(3,))) == 0
    descriptor = host.memory.read(DATA, PAGE)
    assert descriptor[:4] == bytes((2, 16, 0, 0))
    assert descriptor[4:20] == page[104:120]


def test_a_written_block_comes_back_and_the_completion_names_its_command(disk):
    data = bytes(range(256)) * 2
    disk.memory.write(DATA, data)
    disk.put(1, sqe(0x01, cid=0x1234, prp1=DATA, words=(5, 0, 0)))
    (served,) = disk.ring(1)
    assert (served.queue, served.cid, served.status, served.bytes_written) == (1, 0x1234, 0, 512)
    assert disk.take(1) == (0, 0x1234, 1, 1, 0)
    assert disk.namespace.read(5, 1) == data
    disk.put(1, sqe(0x02, prp1=DATA + PAGE, words=(5, 0, 0)))
    (served,) = disk.ring(1)
    assert served.bytes_read == 512
    assert disk.memory.read(DATA + PAGE, 512) == data


def test_phases_turn_at_every_wrap_of_the_completion_queue(disk):
    for _ in range(5 * disk.depth):
        assert disk.command(1, sqe(0x00)) == 0


def test_a_full_completion_queue_stops_fetching_until_the_host_frees_a_slot(disk):
    for cid in range(disk.depth - 1):
        disk.put(1, sqe(0x00, cid=cid))
    assert len(disk.ring(1)) == disk.depth - 1
    disk.put(1, sqe(0x00, cid=0xAA))
    assert disk.ring(1) == ()
    assert [disk.take(1)[1] for _ in range(disk.depth - 1)] == list(range(disk.depth - 1))
    assert [served.cid for served in disk.ring_head(1)] == [0xAA]
    assert disk.take(1)[1] == 0xAA


REFUSED_IO = {
    "unknown opcode": (sqe(0x7F), Status.INVALID_OPCODE),
    "write zeroes is not announced": (sqe(0x08), Status.INVALID_OPCODE),
    "fused": (sqe(0x02, flags=1, prp1=DATA), Status.INVALID_FIELD),
    "scatter-gather list": (sqe(0x02, flags=0x40, prp1=DATA), Status.INVALID_FIELD),
    "namespace 0": (sqe(0x02, nsid=0, prp1=DATA), Status.INVALID_NAMESPACE),
    "namespace 2": (sqe(0x02, nsid=2, prp1=DATA), Status.INVALID_NAMESPACE),
    "flush of namespace 2": (sqe(0x00, nsid=2), Status.INVALID_NAMESPACE),
    "all namespaces": (sqe(0x01, nsid=0xFFFFFFFF, prp1=DATA), Status.INVALID_NAMESPACE),
    "block behind the end": (sqe(0x02, prp1=DATA, words=(1024, 0, 0)), Status.LBA_OUT_OF_RANGE),
    "last block and one more": (sqe(0x01, prp1=DATA, words=(1023, 0, 1)), Status.LBA_OUT_OF_RANGE),
    "block number beyond 32 bits": (sqe(0x01, prp1=DATA, words=(0, 1, 0)), Status.LBA_OUT_OF_RANGE),
    "longer than MDTS": (sqe(0x02, prp1=DATA, words=(0, 0, 0xFFFF)), Status.INVALID_FIELD),
    "PRP1 not on a DWORD": (sqe(0x01, prp1=DATA + 2), Status.PRP_OFFSET_INVALID),
    "second PRP inside a page": (sqe(0x01, prp1=DATA, prp2=DATA + 8, words=(0, 0, 15)), Status.PRP_OFFSET_INVALID),
    "list not on a QWORD": (sqe(0x01, prp1=DATA, prp2=LIST + 4, words=(0, 0, 23)), Status.PRP_OFFSET_INVALID),
    "no memory": (sqe(0x01, prp1=1 << 63), Status.DATA_TRANSFER_ERROR),
    "no memory under the list": (sqe(0x01, prp1=DATA, prp2=1 << 63, words=(0, 0, 23)), Status.DATA_TRANSFER_ERROR),
}


@pytest.mark.parametrize("case", REFUSED_IO)
def test_a_wrong_command_gets_its_status_and_the_disk_goes_on(disk, case):
    entry, status = REFUSED_IO[case]
    field = disk.command(1, entry)
    assert field & 0x7FF == status
    assert bool(field & DNR) == (status is not Status.DATA_TRANSFER_ERROR)
    assert disk.namespace.resident_bytes == 0
    assert disk.command(1, sqe(0x00)) == 0


QUEUE = 7 << 16 | 1
REFUSED_ADMIN = {
    "log pages are not modelled": (sqe(0x02), Status.INVALID_OPCODE),
    "asynchronous events are not modelled": (sqe(0x0C), Status.INVALID_OPCODE),
    "abort is not modelled": (sqe(0x08), Status.INVALID_OPCODE),
    "unknown CNS": (sqe(0x06, prp1=DATA, words=(0x55,)), Status.INVALID_FIELD),
    "identify namespace 2": (sqe(0x06, nsid=2, prp1=DATA, words=(0,)), Status.INVALID_NAMESPACE),
    "identify into no memory": (sqe(0x06, prp1=1 << 62, words=(1,)), Status.DATA_TRANSFER_ERROR),
    "unknown feature": (sqe(0x09, words=(0x01,)), Status.INVALID_FIELD),
    "feature: too many queues": (sqe(0x09, words=(7, 0xFFFF)), Status.INVALID_FIELD),
    "completion queue 0": (sqe(0x05, prp1=IOCQ, words=(7 << 16, 1)), Status.INVALID_QUEUE_IDENTIFIER),
    "completion queue 2 of 1": (sqe(0x05, prp1=IOCQ, words=(7 << 16 | 2, 1)), Status.INVALID_QUEUE_IDENTIFIER),
    "completion queue of one slot": (sqe(0x05, prp1=IOCQ, words=(1, 1)), Status.INVALID_QUEUE_SIZE),
    "completion queue too long": (sqe(0x05, prp1=IOCQ, words=(1024 << 16 | 1, 1)), Status.INVALID_QUEUE_SIZE),
    "completion queue in pieces": (sqe(0x05, prp1=IOCQ, words=(QUEUE, 0)), Status.INVALID_FIELD),
    "completion queue inside a page": (sqe(0x05, prp1=IOCQ + 16, words=(QUEUE, 1)), Status.PRP_OFFSET_INVALID),
    "vector that is not there": (sqe(0x05, prp1=IOCQ, words=(QUEUE, 9 << 16 | 1)), Status.INVALID_INTERRUPT_VECTOR),
    "submission queue on the admin's": (sqe(0x01, prp1=IOSQ, words=(QUEUE, 1)), Status.INVALID_QUEUE_IDENTIFIER),
    "submission queue on none": (sqe(0x01, prp1=IOSQ, words=(QUEUE, 1 << 16 | 1)), Status.COMPLETION_QUEUE_INVALID),
    "delete the admin's submission queue": (sqe(0x00, words=(0,)), Status.INVALID_QUEUE_IDENTIFIER),
    "delete no completion queue": (sqe(0x04, words=(1,)), Status.INVALID_QUEUE_IDENTIFIER),
}


@pytest.mark.parametrize("case", REFUSED_ADMIN)
def test_a_wrong_admin_command_gets_its_status_and_makes_no_queue(host, case):
    entry, status = REFUSED_ADMIN[case]
    assert host.command(0, entry) & 0x7FF == status
    host.with_io()


def test_queues_are_made_once_and_a_used_completion_queue_stays(disk):
    assert disk.command(0, sqe(0x05, prp1=IOCQ, words=(QUEUE, 1))) & 0x7FF == Status.INVALID_QUEUE_IDENTIFIER
    assert disk.command(0, sqe(0x09, words=(7, 0))) & 0x7FF == Status.COMMAND_SEQUENCE_ERROR
    assert disk.command(0, sqe(0x04, words=(1,))) & 0x7FF == Status.INVALID_QUEUE_DELETION
    assert disk.command(0, sqe(0x00, words=(1,))) == 0
    assert disk.command(0, sqe(0x04, words=(1,))) == 0
    before = disk.controller.invalid_doorbells
    assert disk.ring(1) == ()
    assert disk.controller.invalid_doorbells == before + 1


def test_two_io_queues_share_a_completion_queue(host_memory):
    host = Host(host_memory, io_queues=2).with_io()
    assert host.command(0, sqe(0x01, prp1=DATA, words=(7 << 16 | 2, 1 << 16 | 1))) == 0
    host.memory.write(DATA, sqe(0x00, cid=9))
    assert [served.queue for served in host.controller.ring_submission(2, 1)] == [2]
    assert host.take(1) == (0, 9, 1, 2, 0)


@pytest.mark.parametrize(("offset", "value"), [(0x1008, 8), (0x1010, 1), (0x100C, 3), (0x1002, 1), (0x9000, 0)])
def test_doorbells_of_no_queue_or_slot_are_ignored_and_counted(disk, offset, value):
    before = disk.controller.invalid_doorbells
    assert disk.controller.write_register(offset, value) == ()
    assert disk.controller.invalid_doorbells == before + 1
    assert disk.command(1, sqe(0x00)) == 0


@pytest.mark.parametrize("page", [IOSQ, IOCQ])
def test_a_queue_out_of_reach_is_fatal_until_reset_and_the_media_survive(disk, page):
    disk.namespace.write(3, b"\x33" * 512)
    disk.put(1, sqe(0x00))
    disk.memory.refused.add(page // PAGE)
    assert disk.ring(1) == ()
    assert disk.controller.read_register(0x1C) & 2
    assert disk.ring(1) == ()
    disk.controller.write_register(0x14, 0)
    assert disk.controller.read_register(0x1C) == 0
    disk.memory.refused.clear()
    disk.memory.bytes[ACQ : ACQ + PAGE] = bytes(PAGE)
    disk.controller.write_register(0x14, 1 | 6 << 16 | 4 << 20)
    disk.tails[0] = disk.heads[0] = 0
    disk.phases[0] = 1
    assert disk.command(0, sqe(0x06, nsid=0, prp1=DATA, words=(1,))) == 0
    assert disk.namespace.read(3, 1) == b"\x33" * 512


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0x24, 0), (0x28, 0x10010), (0x30, 0x20008), (0x14, 1 | 1 << 7), (0x14, 1 | 1 << 4), (0x14, 1 | 1 << 11)],
)
def test_a_configuration_that_cannot_work_is_fatal(host_memory, offset, value):
    controller = NvmeController(host_memory, NvmeNamespace(8))
    controller.write_register(0x24, 7 << 16 | 7)
    controller.write_register(0x28, ASQ, 8)
    controller.write_register(0x30, ACQ, 8)
    controller.write_register(offset, value, 8 if offset in {0x28, 0x30} else 4)
    controller.write_register(0x14, value if offset == 0x14 else 1)
    assert controller.read_register(0x1C) == 2
    assert controller.ring_submission(0, 1) == ()


def test_queue_registers_hold_while_enabled_and_shutdown_is_reported(host):
    host.controller.write_register(0x28, 0xFFFF0000, 8)
    assert host.controller.read_register(0x28, 8) == ASQ
    host.controller.write_register(0x00, 0)
    assert host.controller.read_register(0x00) & 0xFFFF == 1023
    host.controller.write_register(0x14, host.controller.read_register(0x14) | 1 << 14)
    assert host.controller.read_register(0x1C) >> 2 & 3 == 2


def test_io_queues_need_the_entry_sizes_announced(host_memory):
    host = Host(host_memory)
    host.controller.write_register(0x14, 1)
    assert host.command(0, sqe(0x05, prp1=IOCQ, words=(QUEUE, 1))) & 0x7FF == Status.INVALID_QUEUE_SIZE


@given(
    offset=st.integers(0, 1023).map(lambda n: n * 4),
    count=st.integers(1, 64),
    list_offset=st.sampled_from([0, 8, 0xF00, 0xFF0, 0xFF8]),
    scattered=st.booleans(),
)
@settings(max_examples=25)
def test_data_reaches_the_pages_that_the_list_names_wherever_it_starts(
    make_memory, offset, count, list_offset, scattered
):
    memory = make_memory(16 << 20)
    host = Host(memory, NvmeNamespace(64, 4096)).with_io()
    data = b"".join(struct.pack("<Q", n) for n in range(count * 512))
    host.namespace.write(0, data)
    used = (offset + len(data) + PAGE - 1) // PAGE
    step = 2 if scattered else 1
    pages = [0x400000 + PAGE * step * index for index in range(used)]
    prp2 = pages[1] if used == 2 else LIST + list_offset
    if used > 2:
        entries, at, follow = pages[1:], LIST + list_offset, LIST + 0x8000
        while entries:
            room = (PAGE - at % PAGE) // 8
            if len(entries) <= room:
                memory.write(at, struct.pack(f"<{len(entries)}Q", *entries))
                break
            memory.write(at, struct.pack(f"<{room}Q", *entries[: room - 1], follow))
            entries, at, follow = entries[room - 1 :], follow, follow + PAGE
    assert host.command(1, sqe(0x02, prp1=pages[0] + offset, prp2=prp2, words=(0, 0, count - 1))) == 0
    landed = b"".join(memory.read(page, PAGE) for page in pages)
    assert landed[offset : offset + len(data)] == data
    assert not any(landed[:offset])
    assert not any(landed[offset + len(data) :])


def test_a_list_whose_chain_leaves_the_page_boundary_is_refused(host_memory):
    host = Host(host_memory, NvmeNamespace(64, 4096)).with_io()
    host.memory.write(LIST + 0xFF8, struct.pack("<Q", LIST + 8))
    field = host.command(1, sqe(0x02, prp1=DATA, prp2=LIST + 0xFF8, words=(0, 0, 3)))
    assert field & 0x7FF == Status.PRP_OFFSET_INVALID


def test_a_list_that_points_to_itself_costs_bounded_work(host_memory):
    host = Host(host_memory, NvmeNamespace(512, 4096)).with_io()
    host.memory.write(LIST, struct.pack("<512Q", *[LIST] * 512))
    before = host.memory.accesses
    host.command(1, sqe(0x01, prp1=DATA, prp2=LIST, words=(0, 0, 511)))
    assert host.memory.accesses - before < 600


def test_a_write_whose_data_faults_half_way_leaves_the_media_alone(disk):
    disk.memory.refused.add(DATA // PAGE + 1)
    field = disk.command(1, sqe(0x01, prp1=DATA, prp2=DATA + PAGE, words=(0, 0, 15)))
    assert field & 0x7FF == Status.DATA_TRANSFER_ERROR
    assert disk.namespace.resident_bytes == 0


POINTERS = st.sampled_from(
    [0, 2, DATA, DATA + 8, LIST, LIST + 4, LIST + 0xFF8, (1 << 20) - PAGE, 1 << 63, (1 << 64) - PAGE]
)
NEARLY_RIGHT = st.builds(
    sqe,
    st.sampled_from([0, 1, 2, 4, 5, 6, 9, 10]),
    cid=st.integers(0, 0xFFFF),
    nsid=st.sampled_from([0, 1, 1, 1, 2, 0xFFFFFFFF]),
    prp1=POINTERS,
    prp2=POINTERS,
    words=st.tuples(
        st.sampled_from([0, 1, 2, 3, 7, 1023, QUEUE]),
        st.sampled_from([0, 1, 1 << 16 | 1, 0xFFFFFFFF]),
        st.sampled_from([0, 1, 23, 0xFFFF]),
    ),
)


@given(st.lists(st.tuples(st.integers(0, 1), NEARLY_RIGHT | st.binary(min_size=64, max_size=64)), max_size=8))
@settings(max_examples=62, deadline=None)  # the first example imports
def test_any_sixty_four_bytes_get_one_completion_or_stop_the_device(make_memory, entries):
    host = Host(make_memory(1 << 20)).with_io()
    for queue, entry in entries:
        host.put(queue, entry)
        before = host.memory.accesses
        served = host.ring(queue)
        assert host.memory.accesses - before < 600
        if not host.controller.ready:
            return
        if not served:
            assert queue == 1  # the entries deleted the I/O queue
            return
        (done,) = served
        assert done.status in Status.__members__.values()
        if host.take(queue) is None:
            return  # the entries moved the I/O queue elsewhere
        host.ring_head(queue)


def test_each_namespace_is_identified_read_and_written_by_itself(host_memory):
    more = [NvmeNamespace(8, 4096), NvmeNamespace(32)]
    host = Host(host_memory, NvmeNamespace(1024), more=more).with_io()
    assert host.command(0, sqe(0x06, nsid=0, prp1=DATA, words=(1,))) == 0
    assert struct.unpack("<I", host_memory.read(DATA + 516, 4)) == (3,)  # NN
    for after, left in ((0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, [])):
        assert host.command(0, sqe(0x06, nsid=after, prp1=DATA, words=(2,))) == 0
        assert struct.unpack("<1024I", host_memory.read(DATA, PAGE)) == (*left, *[0] * (1024 - len(left)))
    guids = set()
    for nsid, blocks, data_size in ((1, 1024, 9), (2, 8, 12), (3, 32, 9)):
        assert host.command(0, sqe(0x06, nsid=nsid, prp1=DATA, words=(0,))) == 0
        page = host_memory.read(DATA, PAGE)
        assert (struct.unpack_from("<Q", page)[0], page[130]) == (blocks, data_size)
        guids.add(page[104:120])
        host_memory.write(DATA, bytes([nsid]) * 4096)
        assert host.command(1, sqe(0x01, nsid=nsid, prp1=DATA, words=(4, 0, 0))) == 0
    assert len(guids) == 3
    assert [one.read(4, 1) for one in (host.namespace, *more)] == [b"\1" * 512, b"\2" * 4096, b"\3" * 512]
    assert host.command(1, sqe(0x00, nsid=3)) == 0
    assert host.command(1, sqe(0x02, nsid=4, prp1=DATA)) == Status.INVALID_NAMESPACE | DNR
    assert host.command(1, sqe(0x02, nsid=2, prp1=DATA, words=(8, 0, 0))) == Status.LBA_OUT_OF_RANGE | DNR


def test_no_controller_has_more_namespaces_than_a_page_names(host_memory):
    with pytest.raises(ValueError, match="at most 1024"):
        NvmeController(host_memory, NvmeNamespace(1), more=[NvmeNamespace(1)] * 1024)
