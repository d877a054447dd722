"""A guest's driver of a GPU that works through memory which its host sees: sealed by keys of a session of its own.

As GPUs without TDISP do it: the driver asks the device itself for its certificates and measurements, through a mailbox
among its registers, opens an SPDM session, and hands it keys there. From then on commands, data and fences are sealed
(``tio.gpu_channel``). Keys and counts stand in private memory, from ``gpa`` on:

    GuestGpu's pages, a page of keys, counts and a sealed command, and room for one piece of sealed data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TypeVar

from node.device_policy import DeviceDoubt, DevicePolicy, DeviceUntrusted
from node.device_window import DeviceSilent
from node.guest_gpu import FENCE_AT, GpuUntrusted, GuestGpu
from node.guest_gpu import PRIVATE_BYTES as GPU_BYTES
from node.guest_mailbox import GuestMailbox
from node.operations import Answer, Fault, GuestWork, Read, Write
from node.swiotlb import MOST_MAPPED_BYTES, BounceFault, Steps
from tio.device_identity import device_of
from tio.doe import parse_data_object
from tio.gpu import FENCE_BYTES, MAILBOX_AT, REGISTER_BAR, GpuCommand, GpuOpcode, GpuStatus
from tio.gpu_channel import (
    KEY_BYTES,
    TAG_BYTES,
    VENDOR,
    ChannelCode,
    ChannelStatus,
    GpuChannel,
    Unsealed,
    open_request,
    status_of,
)
from tio.spdm import PCI_DOE, SEV_TIO_OFFER, Packet, Requester, RequesterSettings, SpdmFault, TrustAnchors
from tio.spdm.connection_messages import PCI_SIG_STANDARD
from tio.spdm.measurement import first_unlike

T = TypeVar("T")
Keys = tuple[bytes, bytes, bytes]
"""Of commands, data in and data out."""
PIECE_BYTES = MOST_MAPPED_BYTES // 2
"""Of data that are sealed together."""
_PAGE_BYTES = 4096
PRIVATE_BYTES = GPU_BYTES + _PAGE_BYTES + PIECE_BYTES + _PAGE_BYTES
_KEYS, _COMMAND, _ROOM = GPU_BYTES, GPU_BYTES + _PAGE_BYTES // 2, GPU_BYTES + _PAGE_BYTES
_BOOK = struct.Struct(f"<{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s3Q")
_FENCE_FORM = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class SealedGpu:
    """One vCPU's GPU. Errors beside GpuUntrusted: those of ``GuestGpu``, and DeviceUntrusted of ``start``.

    ``draw`` gives so many random bytes that nobody else knows.
    """

    gpu: GuestGpu
    policy: DevicePolicy
    draw: Callable[[int], bytes]

    def start(self) -> Steps[int]:
        """Have the device prove itself, open a channel, and set it up; how much memory it has."""
        keys = self.draw(KEY_BYTES), self.draw(KEY_BYTES), self.draw(KEY_BYTES)
        try:
            yield from self._open_channel(keys)
        except SpdmFault as fault:
            raise DeviceUntrusted(DeviceDoubt.STRANGER, str(fault)) from None
        size = yield from self.gpu.start()
        yield from self._keep(keys, (0, 0, 0))
        return size

    def stop(self) -> Steps[None]:
        """Take ring and fence from the device; its keys are forgotten, and it keeps its memory to itself."""
        yield from self._done((Write(self._at(_KEYS), bytes(_BOOK.size)),))
        yield from self.gpu.stop()

    def copy_in(self, gpa: int, destination: int, length: int) -> Steps[None]:
        """Private memory into the device's."""
        for at in range(0, length, PIECE_BYTES):
            size = min(PIECE_BYTES, length - at)
            (data,) = yield (Read(gpa + at, size),)
            keys, channel = yield from self._channel()
            sealed = channel.bring_in(_octets(data))
            yield from self._keep(keys, channel.counts)
            mapped = yield from self._lent(sealed, _ROOM)
            command = GpuCommand(GpuOpcode.COPY_IN, 0, mapped, destination + at, size)
            yield from self._run(command, (mapped, len(sealed)))

    def copy_out(self, source: int, gpa: int, length: int) -> Steps[None]:
        """The device's memory into private memory."""
        for at in range(0, length, PIECE_BYTES):
            size = min(PIECE_BYTES, length - at)
            mapped = yield from self.gpu.area.map_from_device(self._at(_ROOM), size + TAG_BYTES)
            command = GpuCommand(GpuOpcode.COPY_OUT, 0, source + at, mapped, size)
            data = yield from self._run(command, (mapped, size + TAG_BYTES), fetched=True)
            yield from self._done((_cipher_work(len(data)), Write(gpa + at, data)))

    def multiply(self, first: int, second: int, product: int, shape: tuple[int, int, int]) -> Steps[None]:
        """As ``GuestGpu.multiply``."""
        yield from self._run(GpuCommand(GpuOpcode.MULTIPLY, 0, first, product, second, *shape))

    # Within.

    def _open_channel(self, keys: Keys) -> Steps[None]:
        """Raises SpdmFault, DeviceSilent and DeviceUntrusted."""
        policy = self.policy
        anchors = TrustAnchors((policy.root,), policy.now)
        settings = RequesterSettings(anchors=anchors, offer=SEV_TIO_OFFER, wants_encryption=True)
        requester = Requester(settings, PCI_DOE, self.draw)
        yield from self._carried(requester.connect())
        yield from self._carried(requester.digests())
        chain = yield from self._carried(requester.certificates())
        told = device_of(chain.leaf)
        if told is None or told[0] is not policy.kind or policy.serial not in ("", told[1]):
            raise DeviceUntrusted(DeviceDoubt.STRANGER, f"expected {policy.kind.value} {policy.serial}, found {told}")
        session = yield from self._carried(requester.open_session())
        blocks = yield from self._carried(requester.measurements(slot=0, session=session))
        unlike = first_unlike(policy.measured, blocks)
        if unlike is not None:
            raise DeviceUntrusted(DeviceDoubt.FIRMWARE, f"measurement {unlike.index}")
        answer = yield from self._carried(
            requester.vendor_defined(open_request(keys), PCI_SIG_STANDARD, VENDOR, session)
        )
        try:
            status = status_of(answer, ChannelCode.OPEN)
        except ValueError as error:
            raise GpuUntrusted(str(error)) from None
        if status is not ChannelStatus.DONE:
            raise GpuUntrusted(f"channel: {status.name}")

    def _carried(self, steps: Generator[Packet, Packet, T]) -> Steps[T]:
        """A requester's steps through the mailbox."""
        mailbox = GuestMailbox(self.gpu.window, REGISTER_BAR, MAILBOX_AT)
        try:
            asked = next(steps)
            while True:
                wrapped = PCI_DOE.wrap(asked)
                answer = yield from mailbox.exchange(parse_data_object(wrapped))
                asked = steps.send(PCI_DOE.unwrap(answer.pack()))
        except StopIteration as end:
            returned: T = end.value
            return returned

    def _run(self, command: GpuCommand, lent: tuple[int, int] | None = None, *, fetched: bool = False) -> Steps[bytes]:
        """Seal a command and have it done; with ``fetched`` what came to the slots that are ``lent``, opened.

        They are given back however it ends. Raises GpuUntrusted for what does not open, and for another end than good.
        """
        slots = [] if lent is None else [lent]
        try:
            number = yield from self.gpu.next_number()
            keys, channel = yield from self._channel()
            sealed = channel.command(replace(command, sequence=number).pack())
            # Before anybody sees what was sealed: no count is ever used twice.
            yield from self._keep(keys, channel.counts)
            at = yield from self._lent(sealed, _COMMAND)
            slots.append((at, len(sealed)))
            _, ring, _ = yield from self.gpu.submitted(GpuCommand(GpuOpcode.SEALED, 0, at, 0, 0))
            reads = [Read(ring + FENCE_AT, FENCE_BYTES + TAG_BYTES, not self.gpu.area.bounces)]
            if lent is not None and fetched:
                reads.append(Read(*lent, not self.gpu.area.bounces))
            fence, *found = [_octets(one) for one in (yield tuple(reads))]
            data = channel.read_out(found[0]) if found else b""
            _check_fence(channel, fence, number)
            yield from self._keep(keys, channel.counts)
        except Unsealed:
            yield from self._given_back(slots)
            raise GpuUntrusted(f"command {command.opcode}: what came back is not the device's") from None
        except (GpuUntrusted, BounceFault, DeviceSilent):
            yield from self._given_back(slots)
            raise
        yield from self._given_back(slots)
        return data

    def _lent(self, sealed: bytes, room: int) -> Steps[int]:
        """Sealed bytes in slots that the device reaches."""
        yield from self._done((_cipher_work(len(sealed)), Write(self._at(room), sealed)))
        return (yield from self.gpu.area.map_to_device(self._at(room), len(sealed)))

    def _given_back(self, slots: list[tuple[int, int]]) -> Steps[None]:
        for at, length in slots:
            yield from self.gpu.area.unmap(at, length)

    def _channel(self) -> Steps[tuple[Keys, GpuChannel]]:
        (data,) = yield (Read(self._at(_KEYS), _BOOK.size),)
        first, second, third, *counts = _BOOK.unpack(_octets(data))
        keys = first, second, third
        return keys, GpuChannel(keys, (counts[0], counts[1], counts[2]))

    def _keep(self, keys: Keys, counts: tuple[int, int, int]) -> Steps[None]:
        yield from self._done((Write(self._at(_KEYS), _BOOK.pack(*keys, *counts)),))

    def _at(self, offset: int) -> int:
        return self.gpu.gpa + offset

    @staticmethod
    def _done(batch: tuple[Write | GuestWork, ...]) -> Steps[None]:
        for answer in (yield batch):
            if isinstance(answer, Fault):
                raise BounceFault(answer)


def _cipher_work(length: int) -> GuestWork:
    """Time of the core that seals or opens so much."""
    return GuestWork("gpu.seal_ns_per_kib", -(-length // 1024))


def _check_fence(channel: GpuChannel, fence: bytes, number: int) -> None:
    """Raises Unsealed for a fence that the device did not write next, GpuUntrusted for one of another end than good."""
    channel.check_fence(fence[:FENCE_BYTES], fence[FENCE_BYTES:])
    if fence[:FENCE_BYTES] != _FENCE_FORM.pack(number, GpuStatus.DONE):
        raise GpuUntrusted(f"fence of command {number}: {fence.hex()}")


def _octets(answer: Answer) -> bytes:
    if not isinstance(answer, bytes):
        raise BounceFault(answer)
    return answer
