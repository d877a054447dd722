"""A host's launch in runs of pages leaves the board that a launch page by page leaves, byte for byte."""

import pytest
from toy_guests import make_host, start

from node import host_instructions
from node import operations as op
from node.firmware_image import firmware_image
from node.generation import Generation
from node.laboratory_firmware import build_image
from node.physical_port import PhysicalPort
from node.platform import HostMode, Platform
from psp.commands import SnpCommand

IMAGE = firmware_image(build_image(512 << 10), "image")


def launched(monkeypatch, fewest, platform, product):
    monkeypatch.setattr(host_instructions, "_FEWEST", fewest)
    host = make_host(image=IMAGE, memory_bytes=1 << 30, platform=platform, product=product)
    calls = []
    bulk = host.board.psp.submit_launch_updates
    monkeypatch.setattr(host.board.psp, "submit_launch_updates", lambda *args: calls.append(bulk(*args)) or calls[-1])
    start(host, "vm", Generation.SEV_SNP)
    return host, sum(calls)


@pytest.mark.parametrize(
    ("product", "platform"),
    [
        ("Milan", Platform()),
        ("Turin", Platform(mode=HostMode.SME)),
        ("Genoa", Platform(mode=HostMode.TSME)),
    ],
)
def test_both_ways_leave_the_same_bytes(monkeypatch, product, platform):
    (bulk, done), (single, none) = (launched(monkeypatch, fewest, platform, product) for fewest in (4, 1 << 30))
    assert none == 0
    assert done >= 128
    assert bulk.guests["vm"].launch_digest == single.guests["vm"].launch_digest
    boards = [bulk.board, single.board]
    modules = [dict(PhysicalPort(board.dram).dump_written()) for board in boards]
    assert modules[0] == modules[1]
    assert boards[0].psp._drawn == boards[1].psp._drawn


@pytest.mark.parametrize("platform", [Platform(caches=True)])
def test_where_somebody_may_look_in_between_commands_come_singly(monkeypatch, platform):
    _, done = launched(monkeypatch, 4, platform, "Milan")
    assert done == 0


def test_another_s_command_page_takes_no_run():
    host = make_host(image=IMAGE, memory_bytes=1 << 30)
    start(host, "vm", Generation.SEV_SNP)
    spa = host.hypervisor.launched("vm").ram[0][1]
    batch = tuple(op.PspCommand(SnpCommand.LAUNCH_UPDATE, spa, bytes([at]) * 0x20) for at in range(8))
    assert all(isinstance(answer, op.Fault) for answer in host.board.execute_host(batch))
