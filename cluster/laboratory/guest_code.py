"""What the code in guests of an attacker's does, by what it is: the victim's keeps a secret, any other tells it.

It acts with its own guest's key, on its own pages and on those that it shares; what it is
answered, and by whom, is the firmware's and the owner's business.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cluster.laboratory.owner_secret import IMPOSTOR
from cluster.laboratory.snp_owner import SnpOwner
from cluster.oracle.transcript import Transcript
from node.actor import Actor, Role
from node.board import Board
from node.message_place import COUNT_BYTES, SECRETS_COUNTS, SECRETS_VMPCKS, VMPCK_BYTES
from node.operations import Answer
from psp.guest_message import BadMessage, MessageHeader, MessageKey, MessageType
from psp.report_messages import ReportRequest, ReportResponse
from psp.status import Status
from psp.system_bus import PAGE_BYTES
from psp.verifier import bound_report_data
from workloads.attacks.asking_guest import SECRET_OFFSET
from workloads.attacks.owner_operations import GuestAsks, GuestShows, ReadInjected
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.secret_channel import ChannelError, ChannelKey

_VERSION = 1


@dataclass(frozen=True, slots=True)
class GuestCode:
    """All code of small guests on one board."""

    board: Board
    transcript: Transcript
    victim: str
    owner: SnpOwner

    def read_injected(self, one: ReadInjected) -> Answer:
        """Code of a SEV guest finds its owner's secret."""
        secret = self.board.controller.read(one.code + one.offset, one.length, one.asid)
        self._has(one, one.code, one.asid, secret)
        return None

    def ask(self, one: GuestAsks) -> Answer:
        """Code of an SNP guest lays a request for a report into a shared page."""
        key, last = self._message_key(one)
        data = bound_report_data(self.owner.challenge(), self._channel(one).public)
        request = ReportRequest(data, one.vmpl).pack()
        message = MessageKey(key).seal(one.vmpl, last + 1, MessageType.REPORT_REQ, _VERSION, request)
        self.board.controller.write(one.request, message.ljust(PAGE_BYTES, b"\0"), 0)
        return None

    def show(self, one: GuestShows) -> Answer:
        """Code of an SNP guest opens the response and shows its report; the secret, if one comes, is in its page."""
        key, last = self._message_key(one)
        page = self.board.controller.read(one.response, PAGE_BYTES, 0)
        payload = _opened(key, page, last + 2, one.vmpl)
        if payload is None:
            self.owner.wait_in_vain()
            return None
        self._count(one, last + 2)
        said = ReportResponse.parse(payload)
        if said.status != Status.SUCCESS:
            self.owner.wait_in_vain()
            return None
        report = payload[ReportResponse.SIZE :][: said.report_bytes]
        channel = self._channel(one)
        box = self.owner.judge(report, channel.public)
        if box is not None:
            try:
                secret = channel.open(box)
            except ChannelError:
                return report
            self.board.controller.write(one.code + SECRET_OFFSET, secret, one.asid)
            self._has(one, one.code, one.asid, secret)
        return report

    def _has(self, one: object, code: int, asid: int, secret: bytes) -> None:
        """The victim's code is the victim; what other code reads, its maker knows."""
        found = self.board.controller.read(code, SECRET_OFFSET, asid)
        own = found == VICTIMS_CODE.ljust(SECRET_OFFSET, b"\0")
        self.transcript.observe(Actor(Role.GUEST, self.victim if own else IMPOSTOR), (one,), (secret,))

    def _message_key(self, one: GuestAsks | GuestShows) -> tuple[bytes, int]:
        """Key and number of the last message, from its secrets page."""
        read = self.board.controller.read
        key = read(one.secrets + SECRETS_VMPCKS + VMPCK_BYTES * one.vmpl, VMPCK_BYTES, one.asid)
        count = read(one.secrets + SECRETS_COUNTS + COUNT_BYTES * one.vmpl, COUNT_BYTES, one.asid)
        return key, int.from_bytes(count, "little")

    def _count(self, one: GuestShows, number: int) -> None:
        at = one.secrets + SECRETS_COUNTS + COUNT_BYTES * one.vmpl
        self.board.controller.write(at, number.to_bytes(COUNT_BYTES, "little"), one.asid)

    def _channel(self, one: GuestAsks | GuestShows) -> ChannelKey:
        """Of a secret that only code in the guest knows."""
        key, _ = self._message_key(one)
        return ChannelKey(hashlib.sha256(b"channel" + key).digest())


def _opened(key: bytes, page: bytes, number: int, vmpl: int) -> bytes | None:
    """The payload of the response with this number; None for anything else."""
    try:
        header = MessageHeader.checked(page)
        payload = MessageKey(key).unseal(header, page)
    except BadMessage:
        return None
    fits = (header.sequence, header.message_type, header.vmpck) == (number, MessageType.REPORT_RSP, vmpl)
    return payload if fits else None
