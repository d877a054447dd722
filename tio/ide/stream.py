"""One port's end of a selective IDE stream: what it sends protected, and what it takes from the link.

A packet carries the prefix of its stream; a MAC covers one packet, or up to eight that follow each other on a
sub-stream, and stands behind the last. The receiver holds an aggregate back until it has checked it. Whatever it must
not take ends the stream: its keys are gone, and nothing goes in the clear in its place.
Source: PCI Express base specification, 6.33.3 to 6.33.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tio.ide.keys import (
    FIRST_INVOCATION,
    KEY_BYTES,
    KEY_SETS,
    MAC_BYTES,
    Direction,
    KeyUsedUp,
    SubStreamKey,
    seal,
    unseal,
)
from tio.ide.prefix import IdePrefix, PrefixError, parse_prefix
from tio.ide.tlp import SubStream, Tlp, TlpError, TlpKind, message

MOST_AGGREGATED = 8
MOST_POSTED = 0xFF
"""What the prefix can say; what was posted beyond it a Sync message tells first."""
_NEAR = 64
"""How far from the next number a packet's may be where nobody compares them."""
SYNC, FAIL = 0x54, 0x55
"""Message codes of the laboratory: the specification's own were not at hand. A Sync message is protected; one that a
stream failed cannot be, for there are no keys any more."""


class StreamState(Enum):
    """6.33.4. There is no way to send matching packets in the clear."""

    INSECURE = "insecure"
    SECURE = "secure"


class Failure(Enum):
    """Why a stream is Insecure. Down to OTHER_STREAM they are failed checks, which a port reports as fatal errors."""

    MAC = "the MAC differs"
    ORDER = "more was posted before it than has arrived"
    TYPE = "a packet of another sub-stream, or of no known type"
    KEY_SET = "the key set changes inside an aggregate, or to keys that do not run"
    AGGREGATE = "more packets without a MAC than the stream allows"
    TEE_LIMITED = "a packet without T on a stream for trusted packets alone"
    UNPROTECTED = "a packet without a prefix where its addresses belong to the stream"
    OTHER_STREAM = "a completion came on another stream than its request went"
    STOPPED = "keys stopped, or programmed anew while they ran"
    DISABLED = "software cleared the enable bit"
    KEY_USED_UP = "a key has no invocation left"
    PARTNER = "the partner says that it failed"
    SESSION = "the session that programmed its keys has ended"
    RESET = "conventional reset"


_SUB_STREAMS = tuple(SubStream)
FAILED_CHECKS = (
    Failure.MAC,
    Failure.ORDER,
    Failure.TYPE,
    Failure.KEY_SET,
    Failure.AGGREGATE,
    Failure.TEE_LIMITED,
    Failure.UNPROTECTED,
    Failure.OTHER_STREAM,
)


class IdeError(Exception):
    """The port's software asked for what the stream does not do now."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream is configured at a port; both ends agree on the last two."""

    tee_limited: bool = False
    aggregation: Mapping[SubStream, int] = field(default_factory=lambda: dict.fromkeys(SubStream, 1))
    """Packets under one MAC, at most eight, by sub-stream."""
    reorder_check: bool = False
    """MACs of NPR and CPL cover how much was posted since the keys were set.

    Without it a packet that is moved before a Sync message passes posted writes unseen (CVE-2025-9612). How
    PCI-SIG's change works was not at hand; this is one that would.
    """

    rekey_flush: bool = False
    """A key that is let be used is used alone from then on, and counts begin anew: what was sent under the one of
    before and has not arrived is lost, or ends the stream where it comes after all (CVE-2025-9614). Both ends must be
    at rest. PCI-SIG's own guidance was not at hand."""


@dataclass(frozen=True, slots=True)
class StreamChecks:
    """What a port does and looks at; False only where a laboratory has it knocked out, at both ends."""

    ciphers: bool = True
    """Without, packets cross as they are, and nothing of them is checked: a stream without link encryption."""
    macs: bool = True
    """Without, what comes is decrypted as it is."""
    numbers: bool = True
    """Without, a packet passes under any number near the next, and nobody counts what was posted before it.

    Numbers are not on the link; a port without the check is one that would take them from there.
    """


ALL_CHECKS = StreamChecks()


@dataclass(frozen=True, slots=True)
class IdeTlp:
    """A protected packet on the link: the payload is ciphertext, ``mac`` empty before an aggregate's last."""

    prefix: bytes
    header: bytes
    payload: bytes
    mac: bytes = b""

    @property
    def head(self) -> bytes:
        """What is integrity-protected in the clear."""
        return self.prefix + self.header


@dataclass(slots=True)
class _Sender:
    """The sending side of one sub-stream."""

    key_set: int = 0
    posted: int = 0
    """Since the last packet here that told it."""
    total: int = 0
    """Since the keys were set."""


@dataclass(slots=True)
class _Receiver:
    """The receiving side of one sub-stream."""

    key_set: int = 0
    held: list[tuple[IdePrefix, IdeTlp]] = field(default_factory=list)
    posted: int = 0
    """Arrived and not yet told of by a packet here."""
    told: int = 0


class IdeStream:
    """Stream ``stream_id`` at one port."""

    def __init__(
        self, stream_id: int, settings: StreamSettings | None = None, checks: StreamChecks = ALL_CHECKS
    ) -> None:
        self.stream_id = stream_id
        self.checks = checks
        self.settings = settings or StreamSettings()
        self.state = StreamState.INSECURE
        self.failure: Failure | None = None
        self.epoch = 0
        """How often the stream became Insecure: whoever relied on it learns that it is not the same any more."""
        self.enabled = False
        self.fail_received = False
        """The partner said that it failed; the host clears it."""
        self.untold = False
        """A check failed here that the partner was not told of."""
        self.misrouted = 0
        """Packets of other streams; dropped, and no reason to fail."""
        self.dropped = 0
        """Packets that came while the stream was Insecure."""
        self._keys: dict[tuple[int, Direction, SubStream], SubStreamKey] = {}
        self._senders = {one: _Sender() for one in SubStream}
        self._receivers = {one: _Receiver() for one in SubStream}

    # Keys and state.

    def program(self, key_set: int, direction: Direction, sub_stream: SubStream, key: bytes, initial: int) -> None:
        """Take a key. One that is in use is not replaced: the stream becomes Insecure. Raises IdeError."""
        if len(key) != KEY_BYTES or initial != FIRST_INVOCATION or key_set not in range(KEY_SETS):
            raise IdeError("expected a key of 32 bytes, an initial value of 1 and key set 0 or 1")
        if self._in_use(key_set, direction, sub_stream):
            self.fail(Failure.STOPPED)
        self._keys[key_set, direction, sub_stream] = SubStreamKey(AESGCM(key))

    def go(self, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Let a key be used: to send from the next aggregate on, to receive as soon as the sender does.

        Raises IdeError for a key that nobody programmed.
        """
        key = self._keys.get((key_set, direction, sub_stream))
        if key is None:
            raise IdeError("expected a key that was programmed")
        key.running = True
        if self.settings.rekey_flush:
            self._flush(key_set, direction, sub_stream)
        if direction is Direction.TX:
            self._senders[sub_stream].key_set = key_set
        elif not self._runs(self._receivers[sub_stream].key_set, Direction.RX, sub_stream):
            self._receivers[sub_stream].key_set = key_set
        self._settle()

    def _flush(self, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Forget what there was under another key set."""
        if direction is Direction.TX:
            self._senders[sub_stream] = _Sender(key_set)
            return
        before, self._receivers[sub_stream] = self._receivers[sub_stream].key_set, _Receiver(key_set)
        if before != key_set:
            self._keys.pop((before, direction, sub_stream), None)

    def stop(self, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Let a key be used no more; the stream is Insecure if it was in use."""
        if self._in_use(key_set, direction, sub_stream):
            self.fail(Failure.STOPPED)
        self._keys.pop((key_set, direction, sub_stream), None)

    def has_keys(self, key_set: int | None = None) -> bool:
        """Whether every sub-stream has keys in both directions, in any one set or that named."""
        sets = range(KEY_SETS) if key_set is None else (key_set,)
        return any(all((one, way, sub) in self._keys for way in Direction for sub in SubStream) for one in sets)

    def is_free(self, key_set: int) -> bool:
        """Whether a set may be programmed: nothing is under it here, nor, as far as this end can tell, at the other.

        That receives under the old set until a packet has come under the new one.
        """
        for one in SubStream:
            if any(self._in_use(key_set, way, one) for way in Direction):
                return False
            now = self._keys.get((self._senders[one].key_set, Direction.TX, one))
            if (key_set, Direction.TX, one) in self._keys and now is not None and not now.was_used:
                return False
        return True

    def has_any_key(self) -> bool:
        """Whether any key was programmed since the stream was last Insecure."""
        return bool(self._keys)

    def enable(self) -> None:
        """Set the enable bit: Secure if all keys run."""
        self.enabled = True
        self._settle()

    def disable(self) -> None:
        """Clear the enable bit."""
        self.enabled = False
        self.fail(Failure.DISABLED)

    def fail(self, why: Failure) -> None:
        """Become Insecure: keys and held packets are gone. The first reason stays until the stream is Secure again."""
        if self.state is StreamState.SECURE:
            self.failure = why
            self.epoch += 1
            self.untold = why in FAILED_CHECKS
        self.fail_received |= why is Failure.PARTNER
        self.state = StreamState.INSECURE
        self._keys.clear()
        self._senders = {one: _Sender() for one in SubStream}
        self._receivers = {one: _Receiver() for one in SubStream}

    def _in_use(self, key_set: int, direction: Direction, sub_stream: SubStream) -> bool:
        side = self._senders if direction is Direction.TX else self._receivers
        return side[sub_stream].key_set == key_set and self._runs(key_set, direction, sub_stream)

    def _runs(self, key_set: int, direction: Direction, sub_stream: SubStream) -> bool:
        key = self._keys.get((key_set, direction, sub_stream))
        return key is not None and key.running

    def _settle(self) -> None:
        sides = ((Direction.TX, self._senders), (Direction.RX, self._receivers))
        every = all(self._runs(side[sub].key_set, way, sub) for way, side in sides for sub in SubStream)
        if self.enabled and every and self.state is StreamState.INSECURE:
            self.state, self.failure = StreamState.SECURE, None

    # What is sent.

    def send(self, packets: Iterable[Tlp], *, tee: bool = True) -> list[IdeTlp]:
        """Protect packets, in their order; the last aggregate ends with them.

        Raises IdeError while the stream is Insecure, and for a packet without T on a TEE-limited one; TlpError for
        one that is none.
        """
        self._may_send(tee)
        out: list[IdeTlp] = []
        checked = [one.checked() for one in packets]
        for sub_stream, some in groupby(checked, lambda one: one.sub_stream):
            together, most = list(some), self.settings.aggregation[sub_stream]
            for at in range(0, len(together), most):
                if sub_stream is not SubStream.PR and self._senders[sub_stream].posted > MOST_POSTED:
                    out += self._seal(SubStream.PR, [self._sync()], tee)
                out += self._seal(sub_stream, together[at : at + most], tee)
        return out

    def _may_send(self, tee: bool) -> None:
        if self.state is StreamState.INSECURE:
            raise IdeError("expected a stream that is Secure")
        if self.settings.tee_limited and not tee:
            raise IdeError("expected trusted packets alone on a TEE-limited stream")

    def _sync(self) -> Tlp:
        """Tell the receiver what was posted, for both of the other sub-streams."""
        counts = [self._senders[one] for one in (SubStream.NPR, SubStream.CPL)]
        words = counts[0].posted << 32 | counts[1].posted
        for one in counts:
            one.total += one.posted
            one.posted = 0
        return message(0, SYNC, words)

    def _seal(self, sub_stream: SubStream, packets: list[Tlp], tee: bool) -> list[IdeTlp]:
        sender = self._senders[sub_stream]
        key = self._keys[sender.key_set, Direction.TX, sub_stream]
        try:
            invocation = key.take(1)
        except KeyUsedUp:
            self.fail(Failure.KEY_USED_UP)
            raise IdeError("expected a key with invocations left") from None
        heads, additional = [], b""
        for number, one in enumerate(packets, 1):
            prefix = IdePrefix(self.stream_id, sub_stream, tee, sender.key_set, number == len(packets), sender.posted)
            heads.append(prefix.pack())
            sender.total += sender.posted
            sender.posted = 0
            additional += heads[-1] + one.header + self._bound(sub_stream, sender.total)
        if sub_stream is SubStream.PR:
            self.count_posted(len([one for one in packets if not is_sync(one)]))
        text = b"".join([one.payload for one in packets])
        sealed, mac = seal(key.aead, invocation, text, additional) if self.checks.ciphers else (text, bytes(MAC_BYTES))
        out, at = [], 0
        for prefix_bytes, one in zip(heads, packets, strict=True):
            out.append(IdeTlp(prefix_bytes, one.header, sealed[at : at + len(one.payload)]))
            at += len(one.payload)
        out[-1] = IdeTlp(out[-1].prefix, out[-1].header, out[-1].payload, mac)
        return out

    def _bound(self, sub_stream: SubStream, total: int) -> bytes:
        if not self.settings.reorder_check or sub_stream is SubStream.PR:
            return b""
        return total.to_bytes(8, "big")

    def count_posted(self, packets: int) -> None:
        """So many posted packets were sent."""
        for one in (SubStream.NPR, SubStream.CPL):
            self._senders[one].posted += packets

    def posted_to_tell(self, sub_stream: SubStream) -> int:
        """How many posted packets the next packet on a sub-stream tells of."""
        return self._senders[sub_stream].posted

    def tell_posted(self, sub_stream: SubStream) -> None:
        """It was told."""
        sender = self._senders[sub_stream]
        sender.total += sender.posted
        sender.posted = 0

    def take_told(self, sub_stream: SubStream, posted: int) -> bool:
        """A packet tells of so many posted ones; False where not as many have arrived."""
        receiver = self._receivers[sub_stream]
        if posted > receiver.posted:
            return False
        receiver.posted -= posted
        receiver.told += posted
        return True

    def sending_key(self, sub_stream: SubStream) -> tuple[int, SubStreamKey]:
        """Key set and key of what is sent next. Raises IdeError while the stream is Insecure."""
        self._may_send(tee=True)
        key_set = self._senders[sub_stream].key_set
        return key_set, self._keys[key_set, Direction.TX, sub_stream]

    # What arrives.

    def receive(self, packet: IdeTlp) -> list[tuple[Tlp, bool]]:
        """Take a packet from the link: the packets that it completes, each with its T bit.

        A check that fails ends the stream (``failure``) and delivers nothing of the aggregate.
        """
        try:
            prefix = parse_prefix(packet.prefix)
        except PrefixError:
            self.misrouted += 1
            return []
        if prefix.stream != self.stream_id:
            self.misrouted += 1
            return []
        if self.state is StreamState.INSECURE:
            self.dropped += 1
            return []
        why = self._objection(prefix, packet)
        if why is None and prefix.mac:
            out, why = self._check(_SUB_STREAMS[prefix.sub_stream])
            if why is None:
                return out
        if why is not None:
            self.fail(why)
        return []

    def receive_clear(self, _: Tlp) -> None:
        """A packet without a prefix whose addresses belong to this stream arrived."""
        self.fail(Failure.UNPROTECTED)

    def _objection(self, prefix: IdePrefix, packet: IdeTlp) -> Failure | None:
        """What is wrong with one packet before its MAC; None holds it."""
        try:
            sub_stream = Tlp(packet.header, packet.payload).checked().sub_stream
            if sub_stream != prefix.sub_stream:
                return Failure.TYPE
        except (IndexError, TlpError):
            return Failure.TYPE
        if self.settings.tee_limited and not prefix.tee:
            return Failure.TEE_LIMITED
        receiver = self._receivers[sub_stream]
        held = receiver.held
        if prefix.key_set != (held[0][0].key_set if held else receiver.key_set) and (
            held or not self._runs(prefix.key_set, Direction.RX, sub_stream)
        ):
            return Failure.KEY_SET
        held.append((prefix, packet))
        if not prefix.mac and len(held) >= self.settings.aggregation[sub_stream]:
            return Failure.AGGREGATE
        return None

    def _check(self, sub_stream: SubStream) -> tuple[list[tuple[Tlp, bool]], Failure | None]:
        """Open the aggregate that is held: its packets, or why not."""
        receiver = self._receivers[sub_stream]
        held, receiver.held = receiver.held, []
        last, before = held[-1][1], receiver.key_set
        receiver.key_set = held[0][0].key_set
        key = self._keys[receiver.key_set, Direction.RX, sub_stream]
        told, additional = receiver.told, b""
        for prefix, packet in held:
            told += prefix.posted
            additional += packet.head + self._bound(sub_stream, told)
        counts = self.checks.numbers and self.checks.ciphers
        if counts and sub_stream is not SubStream.PR and told - receiver.told > receiver.posted:
            return [], Failure.ORDER
        sealed = b"".join([packet.payload for _, packet in held])
        try:
            text = self._opened(key, sealed, additional, last.mac)
        except KeyUsedUp:
            return [], Failure.KEY_USED_UP
        if text is None:
            return [], Failure.MAC
        if receiver.key_set != before:  # What comes under the key of before was held back: it comes too late.
            self._keys.pop((before, Direction.RX, sub_stream), None)
        receiver.posted -= told - receiver.told
        receiver.told = told
        out: list[tuple[Tlp, bool]] = []
        at = 0
        for prefix, packet in held:
            one = Tlp(packet.header, text[at : at + len(packet.payload)])
            at += len(packet.payload)
            if is_sync(one):
                self._synchronise(one)
            else:
                out.append((one, prefix.tee))
        if sub_stream is SubStream.PR:
            self.count_arrived(len(out))
        return out, None

    def _opened(self, key: SubStreamKey, sealed: bytes, additional: bytes, mac: bytes) -> bytes | None:
        """The text of an aggregate; None where its MAC is another. Raises KeyUsedUp."""
        invocation = key.take(1)
        if not self.checks.ciphers:
            return sealed
        if not self.checks.macs:
            return seal(key.aead, invocation, sealed, additional)[0]  # counter mode undoes itself
        text = unseal(key.aead, invocation, sealed, additional, mac)
        if text is not None or self.checks.numbers:
            return text
        for number in range(max(FIRST_INVOCATION, invocation - _NEAR), invocation + _NEAR):
            text = unseal(key.aead, number, sealed, additional, mac)
            if text is not None:
                key.next_invocation = max(invocation, number + 1)
                return text
        return None

    def _synchronise(self, sync: Tlp) -> None:
        words = int.from_bytes(sync.header[8:16], "big")
        for one, count in ((SubStream.NPR, words >> 32), (SubStream.CPL, words & 0xFFFF_FFFF)):
            receiver = self._receivers[one]
            receiver.posted -= count
            receiver.told += count

    def count_arrived(self, packets: int) -> None:
        """So many posted packets have arrived and passed."""
        for one in (SubStream.NPR, SubStream.CPL):
            self._receivers[one].posted += packets

    def receiving_key(self, sub_stream: SubStream) -> tuple[int, SubStreamKey] | None:
        """Key set and key of what arrives next; None while the stream is Insecure or an aggregate is held."""
        receiver = self._receivers[sub_stream]
        if self.state is StreamState.INSECURE or receiver.held:
            return None
        return receiver.key_set, self._keys[receiver.key_set, Direction.RX, sub_stream]


def fail_message(requester: int, stream_id: int) -> Tlp:
    """What a port tells its partner of a stream that failed."""
    return message(requester, FAIL, stream_id)


def is_sync(packet: Tlp) -> bool:
    """Whether a packet is the link's own, which tells what was posted."""
    return packet.header[0] == TlpKind.IDE_MESSAGE and packet.header[7] == SYNC
