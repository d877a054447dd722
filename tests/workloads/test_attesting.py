"""A tenant that shows a report of itself, on a host of its own."""

from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.operations import HostRead
from node.product import PRODUCTS
from node.program import ProgramSpec
from workloads import attesting
from workloads.attesting import Attesting

SECOND = 10**9
IMAGE, COSTS = laboratory_image(), dict(load_cost_table())


def shown(generation=Generation.SEV_SNP, certificates=b"", **parameters):
    """The guest after a second, and what lies in its outbox: status, report, table."""
    spec = HostSpec("host", PRODUCTS["Milan"], 4 << 30, 100, 7, 60 * SECOND)
    host = Host(spec, {"attesting": Attesting.build}, {"auto": IMAGE}, COSTS)
    host.hypervisor._ghcb.requests.certificates = certificates
    program = ProgramSpec("attesting", tuple(parameters.items()))
    host.launch(GuestSpec("vm", generation, 1, 64 << 20, program, 11), lambda _: None, running=True)
    guest = host.guests["vm"]
    while host.clock.env.peek() < SECOND:
        host.clock.env.step()
    if guest.state is not GuestState.RUNNING:
        return guest, None
    spa = host.hypervisor.launched("vm").page_spa(guest.software.programs[0].outbox.gpa)
    (page,) = host.board.execute_host((HostRead(spa, 4096),))
    status, report, table = attesting.HEADER.unpack_from(page)
    body = page[attesting.HEADER.size :]
    return guest, (status, body[:report], body[report : report + table])


def test_a_report_and_certificates_lie_where_the_host_can_read_them():
    data = bytes(range(64))
    guest, (status, report, table) = shown(report_data=data.hex(), certificates=b"c" * 100)
    assert (status, len(report)) == (0, 0x4A0)
    assert report[0x50:0x90] == data
    assert report[0x90:0xC0].hex() == guest.launch_digest
    assert table.startswith(b"c" * 100 + bytes(8))
    assert guest.vcpus[0].registers.r13 == 1


def test_equal_hosts_show_equal_reports():
    assert shown(report_data="ab")[1] == shown(report_data="ab")[1]


def test_what_the_firmware_refuses_is_shown_as_its_status():
    _, (status, report, _) = shown(key_selection=2)
    assert (status, report) == (0x27, b"")


def test_a_guest_that_has_nobody_to_ask_ends():
    guest, found = shown(Generation.SEV)
    assert found is None
    assert guest.state is GuestState.STOPPED
