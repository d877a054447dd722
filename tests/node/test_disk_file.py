"""A file behind a disk: read where nobody wrote, never written, and refused in one line where it cannot be."""

import os

import pytest
from toy_guests import GENERATIONS, MIB, make_host, run

from node import operations as op
from node.disk_file import DiskFile, DiskFileError
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.program import ProgramSpec
from tio.nvme_format import Status

BLOCKS = [bytes([number]) * op.BLOCK_BYTES for number in range(1, 4)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(BLOCKS))
    return path


def machine(path, generation=Generation.PLAIN):
    host = make_host()
    spec = GuestSpec("vm", generation, 1, 64 * MIB, ProgramSpec("rest"), 11, disk=str(path))
    host.launch(spec, lambda _: None, running=True)
    run(host)
    return host, spec.memory.placement("vm", 0, 0).shared_gpa


def do(host, *batch):
    return host.board.execute_guest(host.board.vmcb("vm", 0), batch)


def block_at(host, gpa, lba):
    status, data = do(host, op.BlockRead(lba, 1, gpa), op.Read(gpa, op.BLOCK_BYTES, private=False))
    assert status == 0
    return data


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_a_guest_writes_covers_the_file_and_never_reaches_it(file, generation):
    host, gpa = machine(file, generation)
    assert [block_at(host, gpa, lba) for lba in range(3)] == BLOCKS
    new = b"\xee" * op.BLOCK_BYTES
    assert do(host, op.Write(gpa, new, private=False), op.BlockWrite(1, 1, gpa)) == (None, 0)
    assert [block_at(host, gpa, lba) for lba in range(3)] == [BLOCKS[0], new, BLOCKS[2]]
    assert file.read_bytes() == b"".join(BLOCKS)
    assert host.board.execute_host((op.DiskRead("vm"),)) == (op.Runs(((1, new),)),)


def test_a_disk_ends_where_its_file_ends(file):
    host, gpa = machine(file)
    assert do(host, op.BlockRead(3, 1, gpa), op.BlockWrite(2, 2, gpa)) == (Status.LBA_OUT_OF_RANGE,) * 2
    assert host.board.execute_host((op.DiskWrite("vm", 3, BLOCKS[0]),)) == (Status.LBA_OUT_OF_RANGE,)


def test_a_file_cut_while_it_is_read_is_an_error_of_the_medium(file):
    host, gpa = machine(file)
    file.write_bytes(BLOCKS[0])
    assert do(host, op.BlockRead(0, 1, gpa), op.BlockRead(1, 1, gpa)) == (0, Status.UNRECOVERED_READ_ERROR)
    assert do(host, op.BlockWrite(1, 1, gpa), op.BlockRead(1, 1, gpa)) == (0, 0)  # what is written is there


def test_the_next_vm_of_a_name_has_a_disk_of_its_own(file):
    host, _ = machine(file)
    host.destroy("vm")
    run(host, 200 * 10**9)
    host.launch(GuestSpec("vm", Generation.PLAIN, 1, 64 * MIB, ProgramSpec("rest"), 11), lambda _: None, running=True)
    assert (host.board.disk("vm").media.blocks, host.board.disk_files) == (16 << 20, {})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "expected a file that can be read, got no such file or directory"),
        (b"", "expected a file of whole blocks of 4096 bytes, got 0 bytes"),
        (bytes(5000), "expected a file of whole blocks of 4096 bytes, got 5000 bytes"),
    ],
)
def test_a_file_that_cannot_be_a_disk_refuses_the_launch_in_one_line(tmp_path, content, what):
    path = tmp_path / "disk.img"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DiskFileError, match=f"^disk {path}: {what}$"):
        DiskFile(path)
    host, _ = machine(path)
    assert (host.guests["vm"].state, host.guests["vm"].reason) == (GuestState.REFUSED, f"disk {path}: {what}")


def test_a_folder_and_a_pipe_are_no_disks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DiskFileError, match="something else than a file"):
            DiskFile(path)
