"""Guest requests: what a guest is told, which pages the firmware gets, and the room that certificates need."""

import pytest
from test_ghcb_server import ES, SNP, Guest, refused
from toy_guests import SECOND, make_host, run, spa

from node import operations as op
from node.ghcb_page import BadInput, GhcbReply, build_exit, parse_reply
from node.guest_requests import MESSAGE_TYPE, REPORT_REQUEST
from node.nae_event import EVENTS, NaeEvent
from psp.attestation_report import REPORT_BYTES
from psp.certificate_table import CertificateKind, agent_report_of, packed
from psp.command_buffers import SnpGuestRequest
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import RmpEntry

PAGE = 4096
REPORT = bytearray(b"sealed by the guest".ljust(PAGE, b"."))
REPORT[MESSAGE_TYPE] = REPORT_REQUEST
KEY = bytearray(REPORT)
KEY[MESSAGE_TYPE] = 3
ANSWER = b"sealed by the firmware".ljust(PAGE, b"!")


class Asking(Guest):
    """An SNP guest with a page for a request, one for the response, and some for certificates, all shared."""

    def __init__(self, generation=SNP):
        super().__init__(generation)
        self.request, self.response, self.data = (self.ghcb + PAGE * number for number in (2, 3, 4))
        self.seen = []

    def send(self, message=REPORT, event=NaeEvent.GUEST_REQUEST, **registers) -> GhcbReply:
        self.do(op.Write(self.request, bytes(message), private=False))
        back = self.ask(event, self.request, self.response, **registers)
        return parse_reply(back, EVENTS[event].outputs)

    def extended(self, pages, message=REPORT):
        reply = self.send(message, NaeEvent.EXTENDED_GUEST_REQUEST, RAX=self.data, RBX=pages)
        return reply.info2, reply.registers["RBX"]

    def answered(self):
        return self.do(op.Read(self.response, PAGE, private=False))

    def tap(self, status=Status.SUCCESS):
        """Stand in for a firmware that answers; what it finds is noted."""
        board, submit = self.host.board, self.host.board.psp.submit

        def answer(command, at):
            if command != SnpCommand.GUEST_REQUEST:
                return submit(command, at)
            asked = SnpGuestRequest.parse(board.controller.read(at, SnpGuestRequest.SIZE, 0))
            self.seen.append((asked, board.controller.read(asked.request, PAGE, 0), board.rmp.entry(asked.response)))
            if not status:
                board.controller.write(asked.response, ANSWER, 0)
            return status

        board.psp.submit = answer

    @property
    def record(self):
        return self.host.hypervisor.launched("vm")

    @property
    def server(self):
        return self.host.hypervisor._ghcb.requests


@pytest.fixture
def guest():
    return Asking()


def test_what_is_no_message_is_refused_by_the_firmware(guest):
    assert guest.send().info2 == Status.INVALID_PARAM == 0x16
    assert guest.answered() == bytes(PAGE)


def test_the_message_goes_unread_and_the_answer_comes_by_a_page_of_the_firmwares(guest):
    guest.tap()
    assert guest.send().info2 == 0
    assert guest.answered() == ANSWER
    ((asked, message, entry),) = guest.seen
    assert asked.gctx == guest.record.gctx
    assert message == bytes(REPORT)
    assert entry == RmpEntry(assigned=True, immutable=True)
    # The guest's pages never changed their owner.
    rmp = guest.host.board.rmp
    own = [spa(guest.host, guest.guest, gpa) for gpa in (guest.request, guest.response)]
    assert not any(rmp.entry(at).assigned for at in (asked.request, *own))


def test_a_guest_keeps_its_frames_for_messages_and_gives_them_back(guest):
    guest.tap()
    before = guest.host.hypervisor.figures().memory_bytes
    guest.send()
    guest.send()
    assert {(asked.request, asked.response) for asked, _, _ in guest.seen} == {guest.record.request_pages}
    assert guest.host.hypervisor.figures().memory_bytes == before + 2 * PAGE
    guest.host.destroy("vm")
    run(guest.host, 2 * SECOND)
    assert guest.host.hypervisor.figures().memory_bytes == make_host().hypervisor.figures().memory_bytes
    assert len(guest.host.board.rmp) == len(make_host().board.rmp)


def test_the_firmwares_status_is_the_low_half(guest):
    guest.tap(Status.AEAD_OFLOW)
    assert guest.send().info2 == 0x1D


@pytest.mark.parametrize(("length", "needed"), [(100, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE, 3)])
def test_certificates_need_room(guest, length, needed):
    guest.tap()
    guest.server.certificates = bytes(range(1, 101)).ljust(length, b"c")
    before = guest.do(op.Read(guest.data, 4 * PAGE, private=False))
    for pages in range(needed):
        assert guest.extended(pages) == (1 << 32, needed)
    assert guest.seen == [], "the firmware is not asked, so the message may be sent again"
    assert guest.do(op.Read(guest.data, 4 * PAGE, private=False)) == before
    assert guest.extended(needed) == (0, needed)
    assert guest.do(op.Read(guest.data, length, private=False)) == guest.server.certificates
    assert guest.answered() == ANSWER


@pytest.mark.parametrize("movable", [False, True])
def test_the_agent_is_asked_for_guests_alone_that_it_may_move(guest, movable):
    guest.tap()
    guest.server.certificates = packed({CertificateKind.VCEK: b"vcek"})
    asked = []

    def proves_itself():
        asked.append("report")
        yield ()
        return b"the agent's"

    guest.server.agent_report = proves_itself
    assert not guest.record.agent
    guest.record.agent = movable
    assert guest.extended(1) == (0, 1)
    assert asked == ["report"] * movable
    shown = agent_report_of(guest.do(op.Read(guest.data, PAGE, private=False)))
    assert shown == (b"the agent's" if movable else None)


@pytest.mark.parametrize("report", [bytes(range(1, 17)) * (REPORT_BYTES // 16), b""], ids=["a report", "nothing"])
def test_the_agent_is_asked_once_for_a_guest_that_makes_too_little_room_at_first(guest, report):
    guest.tap()
    guest.server.certificates = packed({CertificateKind.VCEK: b"v" * (PAGE - REPORT_BYTES)})
    asked = []

    def proves_itself():
        asked.append("report")
        yield ()
        return report

    guest.server.agent_report, guest.record.agent = proves_itself, True
    for pages in (0, 1):
        assert guest.extended(pages) == (1 << 32, 2)
    assert not asked
    assert guest.seen == []
    assert guest.extended(2) == (0, 2)
    assert asked == ["report"]
    assert (agent_report_of(guest.do(op.Read(guest.data, 2 * PAGE, private=False))) or b"") == report


def test_without_certificates_the_table_is_empty(guest):
    guest.tap()
    guest.do(op.Write(guest.data, b"x" * 64, private=False))
    assert guest.extended(0) == (0, 0)
    assert guest.extended(1) == (0, 1)
    assert guest.do(op.Read(guest.data, 32, private=False)) == bytes(24) + b"x" * 8


def test_other_messages_have_no_certificates(guest):
    guest.tap()
    guest.server.certificates = b"c" * 100
    assert guest.extended(0, KEY) == (0, 0)
    assert guest.answered() == ANSWER


@pytest.mark.parametrize("wrong", ["request", "response", "private response", "certificates", "private certificates"])
def test_a_page_that_is_not_shared_memory_of_the_guest_is_refused_before_the_firmware_is_asked(guest, wrong):
    guest.tap()
    guest.server.certificates = b"c" * 100
    private = guest.memory.placement("vm", 0, 0).base_gpa
    request, response, data = guest.request, guest.response, guest.data
    guest.do(op.Write(request, bytes(REPORT), private=False))
    if wrong == "request":
        request = 1 << 40
    elif wrong == "response":
        response = 1 << 40
    elif wrong == "private response":
        response = private
    else:
        data = private if wrong == "private certificates" else 1 << 40
    back = guest.ask(NaeEvent.EXTENDED_GUEST_REQUEST, request, response, RAX=data, RBX=1)
    assert refused(back) is BadInput.INVALID_INPUT
    assert guest.seen == []


def test_a_host_without_frames_left_is_busy(guest):
    guest.tap()
    frames = guest.host.hypervisor.frames
    while frames.free_bytes:
        frames.allocate(min(frames.free_bytes, 2 << 20), PAGE)
    assert guest.send().info2 == 2 << 32
    assert guest.seen == []


def test_a_guest_without_a_context_has_no_requests():
    guest = Asking(ES)
    page = build_exit(NaeEvent.GUEST_REQUEST, guest.request, guest.response)
    assert refused(guest.exit(page)) is BadInput.INVALID_EVENT
