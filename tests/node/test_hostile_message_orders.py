"""Whatever a hypervisor makes of the messages of two guests: an answer is to the request, or there is none any more."""

import struct
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import SECOND, make_host, run, start

from node import operations as op
from node.generation import Generation
from node.guest_messages import GuestMessages, MessageRefused
from psp.command_buffers import SnpGuestRequest
from psp.commands import SnpCommand
from psp.guest_message import MessageType
from psp.status import Status

PAGE = 4096
NAMES = ("one", "two")


@dataclass
class Kernel:
    """One guest's hands, and what its firmware context and its secrets page were at the beginning."""

    messages: GuestMessages
    gctx: int
    context: bytes
    secrets: bytes
    refused: bool = False
    sent: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)


class Mailbox:
    """A host with two guests of one image, and a hypervisor at the firmware's door."""

    def __init__(self):
        self.host = make_host()
        self.kernels = {}
        for name in NAMES:
            guest = start(self.host, name, Generation.SEV_SNP)
            run(self.host, self.host.now_ns + SECOND)
            placement = guest.software.programs[0].placement
            messages = GuestMessages(placement.messages, placement.shared_gpa, placement.shared_gpa + PAGE)
            gctx = self.host.hypervisor.launched(name).gctx
            contexts = self.host.board.psp.snp.guests.pages
            secrets = self.execute(name, op.Read(messages.place.secrets_gpa, PAGE))
            self.kernels[name] = Kernel(messages, gctx, contexts.plain(gctx), secrets)
        self.submit = self.host.board.psp.submit
        self.host.board.psp.submit = self.taken
        self.act = self.deliver

    def begin_again(self):
        for name, kernel in self.kernels.items():
            self.host.board.psp.snp.guests.pages.write_packed(kernel.gctx, kernel.context)
            assert self.execute(name, op.Write(kernel.messages.place.secrets_gpa, kernel.secrets)) is None
            kernel.refused, kernel.sent, kernel.heard = False, [], []

    def execute(self, name, *operations):
        return self.host.board.execute_guest(self.host.board.vmcb(name, 0), operations)[0]

    def ask(self, name, data):
        """What firmware says of some data, as far as the guest believes it; None if it does not."""
        asking, answers = self.kernels[name].messages.ask(MessageType.REPORT_REQ, data + bytes(32)), None
        while True:
            try:
                answers = self.host.board.execute_guest(self.host.board.vmcb(name, 0), asking.send(answers))
            except StopIteration as end:
                return end.value.payload
            except MessageRefused:
                return None

    def taken(self, command, at):
        if command != SnpCommand.GUEST_REQUEST:
            return self.submit(command, at)
        controller = self.host.board.controller
        asked = SnpGuestRequest.parse(controller.read(at, SnpGuestRequest.SIZE, 0))
        (kernel,) = (one for one in self.kernels.values() if one.gctx == asked.gctx)
        request = controller.read(asked.request, PAGE, 0)
        kernel.sent.append(request)

        def firmware(message, gctx=asked.gctx):
            controller.write(asked.response, bytes(PAGE), 0)  # Nothing of the run before, which had the same numbers.
            controller.write(asked.request, message, 0)
            controller.write(at, SnpGuestRequest(gctx, asked.request, asked.response).pack(), 0)
            status = self.submit(command, at)
            return status, controller.read(asked.response, PAGE, 0)

        status, response = self.act(kernel, request, firmware)
        controller.write(asked.response, response, 0)
        return status

    # What a hypervisor may do with a request; each gives a status and a page for the guest.

    def deliver(self, kernel, request, firmware):
        status, response = firmware(request)
        kernel.heard.append(response)
        return status, response

    def deliver_twice(self, kernel, request, firmware):
        found = self.deliver(kernel, request, firmware)
        assert firmware(request)[0] == Status.AEAD_OFLOW
        return found

    def drop(self, kernel, request, firmware):
        return Status.SUCCESS, bytes(PAGE)

    def send_back(self, kernel, request, firmware):
        return Status.SUCCESS, request

    def repeat_the_first_request(self, kernel, request, firmware):
        first = kernel.sent[0]
        status, response = firmware(first)
        assert (status == Status.SUCCESS) == (first == request)
        return Status.SUCCESS, response

    def repeat_the_last_answer(self, kernel, request, firmware):
        firmware(request)
        return Status.SUCCESS, kernel.heard[-1] if kernel.heard else bytes(PAGE)

    def give_another_s_answer(self, kernel, request, firmware):
        (other,) = (one for one in self.kernels.values() if one is not kernel)
        firmware(request)
        return Status.SUCCESS, other.heard[-1] if other.heard else bytes(PAGE)

    def ask_as_another(self, kernel, request, firmware):
        (other,) = (one for one in self.kernels.values() if one is not kernel)
        status, response = firmware(request, other.gctx)
        assert status in {Status.INVALID_PARAM, Status.AEAD_OFLOW}
        return Status.SUCCESS, response

    def change_the_answer(self, kernel, request, firmware):
        _, response = firmware(request)
        return Status.SUCCESS, response[:0x100] + bytes([response[0x100] ^ 1]) + response[0x101:]

    def say_that_it_failed(self, kernel, request, firmware):
        _, response = firmware(request)
        return Status.INVALID_PARAM, response


MAILBOX = Mailbox()
HONEST = ("deliver", "deliver_twice")
LIES = (
    "drop", "send_back", "repeat_the_last_answer", "give_another_s_answer", "ask_as_another", "change_the_answer",
    "say_that_it_failed",
)  # fmt: skip
steps = st.tuples(
    st.sampled_from(NAMES), st.sampled_from((*HONEST * 3, "repeat_the_first_request", *LIES))
)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=1, max_size=7))
def test_a_guest_hears_of_what_it_asked_or_never_asks_again(orders):
    MAILBOX.begin_again()
    for number, (name, action) in enumerate(orders):
        kernel = MAILBOX.kernels[name]
        before, data = len(kernel.sent), struct.pack("<Q56x", number + 1)
        MAILBOX.act = getattr(MAILBOX, action)
        answer = MAILBOX.ask(name, data)
        if kernel.refused:
            assert answer is None
            assert len(kernel.sent) == before, "its key is gone"
            continue
        first = action == "repeat_the_first_request" and not before
        if action in HONEST or first:
            assert answer[:4] == bytes(4)
            assert answer[0x20 + 0x50 :][:64] == data
        else:
            assert answer is None
            kernel.refused = True
        messages = {message[0x20:0x28]: message for message in kernel.sent}
        assert len(messages) == len(set(kernel.sent)), "no number for two messages"
