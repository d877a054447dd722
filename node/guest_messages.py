"""A guest kernel's side of guest messages: what its programs ask the security processor, as parts of a block.

The kernel seals a request under its VMPCK with the number after the last one, lays it into a shared page, exits,
and takes one copy of the answer. Only the next number, the right kind, and the seal make it the answer: what a
hypervisor kept from before, or made up, does not. The key and its number lie in the secrets page, so that they last
as long as the guest.

Where anything went wrong nobody knows whether the firmware has seen the number; to use it again with another payload
would give the key away, and so the key is wiped, as Linux does (drivers/virt/coco/sev-guest, snp_disable_vmpck). The
same message may be sent again, when the hypervisor is busy or has no room for certificates.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import exit_between
from node.guest_memory_map import Range
from node.guest_requests import RequestError
from node.mechanism import Mechanism
from node.message_place import COUNT_BYTES, SECRETS_LOCKS, SECRETS_VMPCKS, VMPCK_BYTES, VMPCKS, MessagePlace
from node.nae_event import NaeEvent
from node.operations import Answer, GuestOperation, UpkeepRead, UpkeepWrite
from psp.guest_message import BadMessage, MessageHeader, MessageKey
from psp.status import Status
from psp.system_bus import PAGE_BYTES

MOST_TRIES = 16
"""How often a message is sent to a hypervisor that says it is busy."""
_SECRETS_BYTES = SECRETS_LOCKS + VMPCKS - SECRETS_VMPCKS
"""From the keys to behind the locks."""
_LAST_COUNT = (1 << 32) - 3
"""The page has room for numbers of 32 bits."""
_load = partial(UpkeepRead, mechanism=Mechanism.PSP)
_store = partial(UpkeepWrite, mechanism=Mechanism.PSP)


class MessageRefused(Exception):
    """No answer, or none to believe; ``status`` is what the hypervisor says of the firmware's. The key is gone."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


class MessagesBusy(Exception):
    """Another vCPU waits for an answer under the same key: nothing was sent, and one may come again."""


@dataclass(frozen=True, slots=True)
class AboutDevice:
    """What the hypervisor has to know of a message about a device: which it is, and what range of its memory."""

    guest_device_id: int
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What the firmware answered. ``certificates`` is the hypervisor's table, which nothing vouches for.

    ``pages_needed`` is how many the table takes where there was too little room for it.
    """

    payload: bytes
    certificates: bytes = b""
    pages_needed: int = 0


Asking = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Answered]
_Carrying = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class GuestMessages:
    """The messages of one vCPU. ``request_gpa`` and ``response_gpa`` are two shared pages of its own."""

    place: MessagePlace
    request_gpa: int
    response_gpa: int

    def ask(
        self,
        kind: int,
        payload: bytes,
        version: int = 1,
        room: Range | None = None,
        device: AboutDevice | None = None,
    ) -> Asking:
        """One request and its answer; with shared ``room`` certificates are asked for, too.

        A message about a ``device`` brings what the hypervisor has of its evidence instead. Raises MessageRefused and
        MessagesBusy.
        """
        place = self.place
        secrets, _ = yield (_load(place.secrets_gpa + SECRETS_VMPCKS, _SECRETS_BYTES), _store(place.lock_gpa, b"\1"))
        if not isinstance(secrets, bytes):
            raise MessageRefused(f"secrets page: {secrets!r}")
        key, count, taken = (
            secrets[at - SECRETS_VMPCKS - place.secrets_gpa :][:length]
            for at, length in ((place.key_gpa, VMPCK_BYTES), (place.count_gpa, COUNT_BYTES), (place.lock_gpa, 1))
        )
        if any(taken):
            raise MessagesBusy
        last = int.from_bytes(count, "little")
        if not any(key) or last > _LAST_COUNT:
            yield (_store(place.lock_gpa, b"\0"),)
            raise MessageRefused(f"VMPCK{place.vmpl}: wiped, or no number is left")
        try:
            cipher = MessageKey(key)
            message = cipher.seal(place.vmpl, last + 1, kind, version, payload)
            response, needed = yield from self._carried(message, room, device)
            answer = self._opened(cipher, last + 2, kind + 1, version, response)
        except (MessageRefused, GhcbUntrusted, BadMessage) as bad:
            yield (_store(place.key_gpa, bytes(VMPCK_BYTES)), _store(place.lock_gpa, b"\0"))
            if isinstance(bad, MessageRefused):
                raise
            raise MessageRefused(str(bad) or "no answer to this request") from None
        answers = yield (
            _store(place.count_gpa, (last + 2).to_bytes(COUNT_BYTES, "little")), _store(place.lock_gpa, b"\0"),
            *(() if room is None or needed else (_load(room.gpa, room.length, private=False),)),
        )  # fmt: skip
        if answers[:2] != (None, None):
            # Who took the page away may bring it back with the old number in it; but then it is locked, too.
            raise MessageRefused(f"secrets page: {answers[0]!r}")
        table = answers[-1] if isinstance(answers[-1], bytes) else b""
        return Answered(answer, table, needed)

    def _carried(self, message: bytes, room: Range | None, device: AboutDevice | None) -> _Carrying:
        """The response page's bytes, and how many pages were missing for certificates."""
        needed = 0
        for _ in range(MOST_TRIES):
            extended = room is not None and not needed
            registers = {"RAX": room.gpa, "RBX": room.length // PAGE_BYTES} if room is not None and extended else {}
            event = NaeEvent.EXTENDED_GUEST_REQUEST if extended else NaeEvent.GUEST_REQUEST
            if device is not None:
                event = NaeEvent.TIO_GUEST_REQUEST
                about = {"RCX": device.guest_device_id, "RDX": device.parameter}
                registers = {"RAX": 0, "RBX": 0} | registers | about
            reply, response = yield from exit_between(
                self.place.ghcb_gpa,
                event,
                (self.request_gpa, self.response_gpa),
                registers,
                _store(self.request_gpa, message, private=False),
                _load(self.response_gpa, PAGE_BYTES, private=False),
            )
            error, status = reply.info2 >> 32, reply.info2 & 0xFFFF_FFFF
            if extended and error == RequestError.BUFFER_TOO_SMALL:
                # The number has to be used up with this message: it goes without certificates.
                needed = reply.registers["RBX"] or 1
            elif error == RequestError.NONE and status == Status.SUCCESS and reply.exception is None:
                if not isinstance(response, bytes):
                    raise MessageRefused(f"response page: {response!r}")
                return response, needed
            elif error != RequestError.BUSY or reply.exception is not None:
                raise MessageRefused(f"guest request: error {error}, status {status:#x}", status)
        raise MessageRefused("guest request: the hypervisor stays busy")

    def _opened(self, key: MessageKey, sequence: int, kind: int, version: int, response: bytes) -> bytes:
        header = MessageHeader.checked(response)
        fits = (header.sequence, header.message_type, header.message_version, header.vmpck) == (
            sequence, kind, version, self.place.vmpl
        )  # fmt: skip
        if not fits and self.place.checks_answers:
            raise BadMessage
        return key.unseal(header, response)
