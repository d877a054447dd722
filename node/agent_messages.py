"""What code in a guest that moves guests has in common: messages to the firmware, and a peer that it believes.

Its hypervisor carries both and is believed in neither: requests and answers are sealed with the guest's VMPCK0, a peer
shows a report of a chip that AMD certified, in which the digest of its key is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

import msgpack

from node.message_place import COUNT_BYTES, SECRETS_COUNTS, SECRETS_VMPCKS, VMPCK_BYTES
from node.operations import GuestOperation, Read, ReadRandom, Write
from node.packing import packed
from node.platform import NO_FLOOR
from psp.byte_layout import ByteLayout
from psp.guest_context import DIGEST_BYTES, REPORT_ID_BYTES
from psp.guest_message import BadMessage, MessageHeader, MessageKey, MessageType
from psp.report_messages import ReportRequest, ReportResponse
from psp.status import Status
from psp.verifier import COMPONENTS, LINES, Evidence, Expectations, Rejected, Report, verify
from psp.verifier.product_line import line_of_processor

MARK = b"sevfleet migration agent 1"
"""What an agent's image begins with, so that its measurement is no other's."""
KEY_BYTES = 32
"""Of a key of X25519, and of what is derived."""
MOST_TRIES = 3
"""How often one message is sent."""


class AgentRefusal(Exception):
    """Why such code does not do what it was told."""


@dataclass(frozen=True, slots=True)
class Carry:
    """A request that the hypervisor is to carry to the firmware."""

    message: bytes


Asking = Generator[tuple[GuestOperation, ...] | Carry, object, bytes]


@dataclass(frozen=True, slots=True)
class Hello:
    """What one shows another: its key, a report that holds the key's digest, and who certifies the chip."""

    public_key: bytes
    report: bytes = field(repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    """VCEK, ASK, ARK and the ARK's revocation list in DER; the hypervisor adds them."""

    def pack(self) -> bytes:
        """As bytes."""
        return packed((self.public_key, self.report, self.certificates))

    @classmethod
    def parse(cls, data: bytes) -> Hello:
        """Back from bytes. Raises AgentRefusal."""
        try:
            match msgpack.unpackb(data, use_list=False):
                case (bytes(key), bytes(report), tuple(certificates)) if len(key) == KEY_BYTES and all(
                    type(one) is bytes for one in certificates
                ):
                    return cls(key, report, certificates)
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            pass
        raise AgentRefusal("the peer's greeting is malformed")

    @property
    def bound(self) -> bytes:
        """REPORT_DATA of the report that goes with an agent's key."""
        return self.bound_by(MARK)

    def bound_by(self, mark: bytes) -> bytes:
        """The same of code with another mark."""
        return hashlib.sha512(mark + self.public_key).digest()


@dataclass(frozen=True, slots=True)
class Voucher:
    """What an agent says to a guest of its own that moves itself: its initial migration image, and the peer's agent.

    A report of the agent's has the digest of both in it, of the guest's own report id, lest it is said of another of
    its guests, and of the key that the guest's handler greets with.
    """

    imd: bytes
    peer_id: bytes
    """Report id of the agent on the other host, which this one believes."""
    report: bytes = field(default=b"", repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    """As those of a greeting."""

    def pack(self) -> bytes:
        """As bytes."""
        return packed((self.imd, self.peer_id, self.report, self.certificates))

    @classmethod
    def parse(cls, data: bytes) -> Voucher:
        """Back from bytes. Raises AgentRefusal."""
        try:
            match msgpack.unpackb(data, use_list=False):
                case (bytes(imd), bytes(peer_id), bytes(report), tuple(certificates)) if (
                    (len(imd), len(peer_id)) == (DIGEST_BYTES, REPORT_ID_BYTES)
                    and all(type(one) is bytes for one in certificates)
                ):
                    return cls(imd, peer_id, report, certificates)
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            pass
        raise AgentRefusal("the agent's word is malformed")

    def bound_to(self, report_id: bytes, key: bytes) -> bytes:
        """REPORT_DATA of that report, for the guest with this report id, whose handler has this key."""
        return hashlib.sha512(MARK + b" vouches" + self.imd + self.peer_id + report_id + key).digest()


def floor_data(levels: Mapping[str, int]) -> bytes:
    """HOST_DATA of an agent with a floor: a byte for each component of a TCB, in the order of COMPONENTS, then zeros.

    Its hypervisor chooses that, but only once and for all of its life, and every report of the agent's says it.
    """
    return bytes([levels.get(name, 0) for name in COMPONENTS]).ljust(len(NO_FLOOR), b"\0")


def floor_of(host_data: bytes) -> Mapping[str, int]:
    """The other way; components without a floor are left out."""
    return {name: level for name, level in zip(COMPONENTS, host_data, strict=False) if level}


def tcb_floor(own: Report) -> Mapping[str, int]:
    """What a peer's firmware must not be below: that of one's own report."""
    line = line_of_processor(*own.cpuid[:2]) if own.cpuid else None
    return (line or LINES["Milan"]).layout.split(own.reported_tcb)


def believe(hello: Hello, expected: Expectations, now: int, roots: Mapping[str, frozenset[str]]) -> None:
    """Look at a peer, whose issuer must not be on the revocation list that it has to bring. Raises AgentRefusal."""
    leaf, ask, ark = (*hello.certificates, None, None, None)[:3]
    try:
        evidence = Evidence(hello.report, ark, ask, leaf, hello.certificates[3:])
        verify(evidence, replace(expected, crl_demanded=True), now, roots)
    except Rejected as rejected:
        raise AgentRefusal(f"the peer is not believed: {rejected}") from None


def asked_report(secrets_gpa: int, data: bytes) -> Asking:
    """A report with this REPORT_DATA. Raises AgentRefusal."""
    answer = yield from ask_firmware(secrets_gpa, MessageType.REPORT_REQ, ReportRequest(data))
    if ReportResponse.parse(answer).status != Status.SUCCESS:
        raise AgentRefusal("firmware gives no report")
    return answer[ReportResponse.SIZE :]


def ask_firmware(secrets_gpa: int, kind: MessageType, asked: ByteLayout, version: int = 1) -> Asking:
    """One message to the firmware, by the secrets page at ``secrets_gpa``, and its answer's payload.

    Where no answer comes the same message, to the byte, is sent some times more: firmware that failed has not taken its
    number, and one that has taken it takes it once. Raises AgentRefusal.
    """
    key_gpa, count_gpa = secrets_gpa + SECRETS_VMPCKS, secrets_gpa + SECRETS_COUNTS
    found = yield (Read(key_gpa, VMPCK_BYTES), Read(count_gpa, COUNT_BYTES))
    assert isinstance(found, tuple)
    key, count = found
    if not isinstance(key, bytes) or not isinstance(count, bytes):
        raise AgentRefusal("its secrets page is gone")
    last, cipher = int.from_bytes(count, "little"), MessageKey(key)
    message, found = cipher.seal(0, last + 1, kind, version, asked.pack()), b""
    for _ in range(MOST_TRIES):
        page = yield Carry(message)
        assert isinstance(page, bytes)
        try:
            header = MessageHeader.checked(page)
            found = cipher.unseal(header, page)
        except BadMessage:
            wrong = "no answer of the firmware's"
            continue
        if (header.sequence, header.message_type) == (last + 2, kind + 1):
            wrong = ""
            break
        wrong = "the answer to another message"
    # Whatever came back, the number is used up, if the firmware has seen it.
    yield (Write(count_gpa, (last + 2).to_bytes(COUNT_BYTES, "little")),)
    if wrong:
        raise AgentRefusal(wrong)
    return found


def fresh_key() -> Asking:
    """A key that nobody has had before. Raises AgentRefusal."""
    drawn = yield (ReadRandom(),) * (KEY_BYTES // 8)
    assert isinstance(drawn, tuple)
    numbers = [one for one in drawn if isinstance(one, int)]
    if len(numbers) != len(drawn):
        raise AgentRefusal("the processor has no random numbers")
    return b"".join([number.to_bytes(8, "little") for number in numbers])
