"""A tenant with devices of its own: disk, GPU and network card, each put to work in rounds.

It stores to its disk and reads back, has its GPU multiply matrices, and sends frames to a peer that does the same.
Devices are taken, put to work and let go in the order in which its machine was to have them.
One program for every generation: where its VM trusts devices it has each proved and let into private memory first, and
works there; elsewhere, and on devices without TEE-IO, it copies through bounce buffers, or not even that where devices
reach all memory. From time to time it lets its devices go, and takes them again. Where its hypervisor asks for them, to
move it, it stops trusting them, works on over bounce buffers, and has those that it finds then proved as it had others.

Each vCPU but the first rests.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from node.device_notice import DeviceNotice, Told, read_notice, tell
from node.device_policy import DeviceUntrusted
from node.device_window import DeviceWindow
from node.ghcb_page import GhcbUntrusted
from node.guest_functions import says_tee_io
from node.guest_gpu import PRIVATE_BYTES as GPU_BYTES
from node.guest_gpu import SHARED_BYTES as GPU_SHARED_BYTES
from node.guest_gpu import GuestGpu
from node.guest_messages import GuestMessages, MessageRefused
from node.guest_nic import ENTRIES, GuestNic
from node.guest_nic import PRIVATE_BYTES as NIC_BYTES
from node.guest_nic import SHARED_BYTES as NIC_SHARED_BYTES
from node.guest_nvme import BLOCK_BYTES, GuestNvme
from node.guest_nvme import PRIVATE_BYTES as NVME_BYTES
from node.guest_nvme import SHARED_BYTES as NVME_SHARED_BYTES
from node.guest_svsm import SvsmBelow, SvsmUntrusted
from node.guest_tdi import SHARED_BYTES as TDI_SHARED_BYTES
from node.guest_tdi import GuestTdi, TdiRefused
from node.mac_address import mac_of
from node.operations import Answer, GuestOperation, Read, Shutdown, Sleep, UpkeepRead, UpkeepWrite, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.sealed_gpu import PRIVATE_BYTES as SEALED_GPU_BYTES
from node.sealed_gpu import SealedGpu
from node.swiotlb import MOST_MAPPED_BYTES, BounceArea, BounceFault, Steps
from psp.tsm.tio_buffers import NONCE_BYTES
from tio.device_identity import CardKind
from tio.tdisp.report import InterfaceReport, parse_report
from tio.virtio_net import ETHERNET_HEADER_BYTES
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, with_devices
from workloads.device_policies import policy_for
from workloads.keyed_content import KeyedContent
from workloads.parameters import PAGE_BYTES, WorkloadParameterError, check_placement, parameters_from, text, whole

DEVICE_WORK = "device-work"
NOT_TRUSTED = Shutdown(6)
"""A device that was to be trusted is not what it must be, or nobody let the guest have it."""
OPEN_RIP, ATTACH_RIP, WORK_RIP, DETACH_RIP = 0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000
SCRATCH_BYTES = 1 << 20
"""Private memory for a round's data: what goes out, and what comes back."""
_DRIVER_BYTES = max(NVME_BYTES, GPU_BYTES, SEALED_GPU_BYTES, NIC_BYTES)
DEVICE_BYTES = _DRIVER_BYTES + PAGE_BYTES
"""Private memory for each device: its driver's, and the report of its interface."""
MOST_DEVICES = 4
_SHARED_BYTES = TDI_SHARED_BYTES + MOST_DEVICES * max(NVME_SHARED_BYTES, GPU_SHARED_BYTES, NIC_SHARED_BYTES)
_SHARED_BYTES += MOST_MAPPED_BYTES
_LENGTH, _NUMBER = struct.Struct("<I"), struct.Struct("<Q")
_ETHER_TYPE = b"\x88\xb5"
"""Of local experiments (IEEE 802)."""
_REST = Sleep(3_600_000_000_000)
_WORD = np.dtype("<i4")
_NS_PER_MS = 1_000_000
_SHA_256 = re.compile(r"[0-9a-fA-F]{64}")

Job = Callable[["DeviceWork", int, int], Generator[tuple[GuestOperation, ...], tuple[Answer, ...], bool]]


@dataclass(frozen=True, slots=True)
class DeviceParameters:
    """Parameters of ``device-work``; the defaults are the laboratory's."""

    block_bytes: int = whole(64 << 10, 4096, 256 << 10, 4096)
    """What goes to the disk and back in a round."""
    disk_begins: str = text("", 64)
    """SHA-256, in hexadecimal digits, of the first ``block_bytes`` that lie on its disk when it comes, as its owner
    knows them: another disk is a wrong answer. Nothing is compared by default."""
    matrix_order: int = whole(64, 1, 128)
    """Rows and columns of the matrices that the GPU multiplies."""
    sealed: int = whole(0, 0, 1)
    """1: a GPU that is not trusted works on what is sealed in a session of its driver's own."""
    trusted_only: int = whole(0, 0, 1)
    """1: a guest that trusts devices works on no other. That a device has no TEE-IO may be its hypervisor's lie."""
    peer: str = text("", 64)
    """Whom its network card talks to, by the name of its machine; nobody by default."""
    frame_bytes: int = whole(1024, 16, 1400)
    """What a frame carries."""
    pause_ms: int = whole(100, 1, 3_600_000)
    """Between rounds."""
    rounds_attached: int = whole(0, 0, 1 << 30)
    """Rounds after which devices are let go and taken again; 0 for never."""

    def __post_init__(self) -> None:
        """Raises WorkloadParameterError."""
        if self.disk_begins and not _SHA_256.fullmatch(self.disk_begins):
            raise WorkloadParameterError("disk_begins", "64 hexadecimal digits, or none")

    @property
    def private_bytes(self) -> int:
        """Drivers, reports and a round's data."""
        return MOST_DEVICES * DEVICE_BYTES + SCRATCH_BYTES

    @property
    def shared_bytes(self) -> int:
        """Messages, evidence, and bounce buffers."""
        return _SHARED_BYTES

    @property
    def disk_bytes(self) -> int:
        """None of the disk that its hypervisor emulates."""
        return 0


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """The program. R12 is the device at hand, R13 counts rounds; R11 has a bit for each device that is trusted.

    Where the hypervisor may ask for the devices R9 has what the guest said of them last, and R10 how often others had
    come in their places when they were set up. ``trusted`` is what a block finds in R11 as it begins.
    """

    parameters: DeviceParameters
    placement: Placement
    content: KeyedContent
    trusted: int = 0

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> DeviceWork:
        """Rebuild the program whole. Raises WorkloadParameterError."""
        parameters = parameters_from(DeviceParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, DEVICE_WORK))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {rip: self._ending(step) for rip, step in _STEPS.items()}

    def _ending(self, step: Callable[[DeviceWork, Registers], Block]) -> Callable[[Registers], Block]:
        return lambda registers: with_devices(_trusting(step(replace(self, trusted=registers.r11), registers)))

    # Where things are.

    @property
    def bounce_area(self) -> BounceArea:
        """Buffers that untrusted devices reach, behind the pages of messages."""
        place, skipped = self.placement, TDI_SHARED_BYTES
        return BounceArea(place.shared_gpa + skipped, place.shared_length - skipped, place.book_gpa, place.bounces)

    def area(self, device: int) -> BounceArea:
        """What a device reaches: those buffers, or all of memory if it is trusted."""
        return replace(self.bounce_area, bounces=False) if self.trusts(device) else self.bounce_area

    def trusts(self, device: int) -> bool:
        """Whether a device was proved, and works in private memory."""
        return bool(self.trusted >> device & 1)

    def uses(self, device: int) -> bool:
        """Whether a device is worked with: a machine that wants trusted ones alone leaves others be."""
        return self.trusts(device) or not (self.parameters.trusted_only and self.placement.trusts_devices)

    def memory(self, device: int) -> int:
        """The private memory of a device's driver."""
        return self.placement.base_gpa + device * DEVICE_BYTES

    @property
    def scratch(self) -> int:
        """The private memory of a round's data."""
        return self.placement.base_gpa + MOST_DEVICES * DEVICE_BYTES

    def window(self, device: int) -> DeviceWindow:
        """A device's registers."""
        return DeviceWindow(device, private=self.trusts(device))

    def nvme(self, device: int) -> GuestNvme:
        """The driver of a disk."""
        return GuestNvme(self.area(device), self.window(device), self.memory(device))

    def gpu(self, device: int, number: int = 0) -> GuestGpu | SealedGpu:
        """The driver of a GPU; ``number`` is that of the round in which it opens a session of its own."""
        gpu = GuestGpu(self.area(device), self.window(device), self.memory(device))
        if not self.parameters.sealed or self.trusts(device):
            return gpu
        return SealedGpu(gpu, policy_for(CardKind.GPU), self._secrets(device, number))

    def _secrets(self, device: int, number: int) -> Callable[[int], bytes]:
        drawn = 0

        def draw(length: int) -> bytes:
            nonlocal drawn
            drawn += 1
            return self.content.octets(b"session %d" % drawn, number, device, length)

        return draw

    def nic(self, device: int) -> GuestNic:
        """The driver of a network card."""
        return GuestNic(self.area(device), self.placement.vcpu, self.memory(device), self.window(device))

    def _tdi(self, device: int, registers: Registers) -> GuestTdi | None:
        place = self.placement
        if place.messages is None:
            return None
        gpa, secrets_gpa = place.shared_gpa, place.messages.secrets_gpa
        below = SvsmBelow(registers, secrets_gpa) if place.messages.vmpl else None
        return GuestTdi.of(GuestMessages(place.messages, gpa, gpa + PAGE_BYTES), device, below)

    def _report(self, device: int) -> int:
        return self.memory(device) + _DRIVER_BYTES

    # Blocks.

    def _open(self, registers: Registers) -> Block:
        if not self.placement.devices:
            return _REST
        yield from self.bounce_area.open()
        registers.rip = ATTACH_RIP
        return None

    def _attach(self, registers: Registers) -> Block:
        """Take the next device, have it proved where that is to be had, and set it up."""
        device = registers.r12
        notice = yield from self._notice()
        others = notice.arrivals != registers.r10
        if device and others:
            return self._begin_anew(registers)
        if self.placement.devices_move and not device:
            # What has just come is used over bounce buffers first: proving takes its time.
            registers.r9 = Told.LET_GO if notice.wanted or others else Told.SETTLED
            registers.r10 = notice.arrivals
        registers.r11 &= ~(1 << device)
        # Every kernel looks at what a device says that it can.
        offered = (yield from says_tee_io(device)) or self.parameters.trusted_only
        if self.placement.trusts_devices and registers.r9 != Told.LET_GO and offered:
            registers.r11 |= (yield from self._trust(device, registers, notice)) << device
        now = replace(self, trusted=registers.r11)
        if now.uses(device):
            yield from _STARTS[self.placement.devices[device]](now, device, registers.r13)
        registers.r12 += 1
        if registers.r12 == len(self.placement.devices):
            registers.r12 = 0
            registers.rip = WORK_RIP
            if self.placement.devices_move:
                yield from tell(Told(registers.r9), registers.r11)
        return None

    def _trust(self, device: int, registers: Registers, notice: DeviceNotice) -> Steps[bool]:
        """Have a device proved and let it into private memory; False where it is to be used as it is, or not at all.

        A machine that was moved goes on without one that it cannot trust any more; another ends.
        """
        tdi = self._tdi(device, registers)
        if tdi is None:
            raise TdiRefused("nothing carries messages to the firmware")
        nonce = self.content.octets(b"nonce", registers.r13, device, NONCE_BYTES)
        try:
            report = (yield from tdi.attach(policy_for(self.placement.devices[device]), nonce)).pack()
        except (DeviceUntrusted, TdiRefused):
            if not notice.arrivals:
                raise
            return False
        (kept,) = yield (UpkeepWrite(self._report(device), _LENGTH.pack(len(report)) + report),)
        if kept is not None:
            raise BounceFault(kept)
        return True

    def _notice(self) -> Steps[DeviceNotice]:
        return (yield from read_notice()) if self.placement.devices_move else DeviceNotice()

    @staticmethod
    def _begin_anew(registers: Registers) -> Shutdown | None:
        """Other devices have come in the places of those before, and were told nothing yet.

        One that is trusted does not go so: whoever says that it did lies.
        """
        registers.r12, registers.rip = 0, ATTACH_RIP
        return NOT_TRUSTED if registers.r11 else None

    def _work(self, registers: Registers) -> Block:
        """One round on every device."""
        notice = yield from self._notice()
        if notice.arrivals != registers.r10:
            return self._begin_anew(registers)
        for device, kind in enumerate(self.placement.devices):
            if self.uses(device) and not (yield from _JOBS[kind](self, device, registers.r13)):
                return WRONG_ANSWER
        registers.r13 += 1
        often = self.parameters.rounds_attached
        if (often and not registers.r13 % often) or (notice.wanted is not (registers.r9 == Told.LET_GO)):
            registers.rip = DETACH_RIP
        return Sleep(self.parameters.pause_ms * _NS_PER_MS)

    def _detach(self, registers: Registers) -> Block:
        """Let the next device go."""
        device = registers.r12
        if (yield from self._notice()).arrivals != registers.r10:
            return self._begin_anew(registers)
        if self.uses(device):
            yield from _STOPS[self.placement.devices[device]](self, device)
        tdi = self._tdi(device, registers)
        if self.trusts(device) and tdi is not None:
            report = yield from self._kept_report(device)
            if report is None:
                return FAULTED
            yield from tdi.detach(report)
            registers.r11 &= ~(1 << device)
        registers.r12 += 1
        if registers.r12 == len(self.placement.devices):
            registers.r12 = 0
            registers.rip = ATTACH_RIP
        return None

    def _kept_report(self, device: int) -> Steps[InterfaceReport | None]:
        (data,) = yield (UpkeepRead(self._report(device), PAGE_BYTES),)
        if not isinstance(data, bytes):
            return None
        (length,) = _LENGTH.unpack_from(data)
        return parse_report(data[_LENGTH.size : _LENGTH.size + length])

    # Jobs. Each returns whether what came back is what it must be.

    def _store_and_load(self, device: int, number: int) -> Steps[bool]:
        length = self.parameters.block_bytes
        data = _octets(self.content, number, length)
        out, back = self.scratch, self.scratch + length
        disk = self.nvme(device)
        blocks, lba = length // BLOCK_BYTES, number % 4 * (length // BLOCK_BYTES)
        if not number and not (yield from self._begins_as_told(disk)):
            return False
        if faulted((yield (Write(out, data),))):
            return False
        if (yield from disk.write(lba, blocks, out)) or (yield from disk.read(lba, blocks, back)):
            return False
        (found,) = yield (Read(back, length),)
        return found == data

    def _begins_as_told(self, disk: GuestNvme) -> Steps[bool]:
        """Whether there is on the disk what its owner said, before anything is stored there."""
        told, length = self.parameters.disk_begins.lower(), self.parameters.block_bytes
        if not told:
            return True
        if (yield from disk.read(0, length // BLOCK_BYTES, self.scratch)):
            return False
        (found,) = yield (Read(self.scratch, length),)
        return isinstance(found, bytes) and hashlib.sha256(found).hexdigest() == told

    def _multiply(self, device: int, number: int) -> Steps[bool]:
        order = self.parameters.matrix_order
        size = order * order * _WORD.itemsize
        words = np.frombuffer(_octets(self.content, number, -(-2 * size // 8) * 8), _WORD)[: 2 * order * order]
        one, other = words.reshape(2, order, order)
        gpu, out = self.gpu(device), self.scratch
        if faulted((yield (Write(out, one.tobytes()), Write(out + size, other.tobytes())))):
            return False
        yield from gpu.copy_in(out, 0, 2 * size)
        yield from gpu.multiply(0, size, 2 * size, (order, order, order))
        yield from gpu.copy_out(2 * size, out, size)
        (found,) = yield (Read(out, size),)
        return found == (one @ other).tobytes()


    def _talk(self, device: int, number: int) -> Steps[bool]:
        """Take what the peer sent, and send it the next frame."""
        peer, nic = self.parameters.peer, self.nic(device)
        if not peer:
            return True
        own, other = mac_of(self.placement.vm, 0), mac_of(peer, 0)
        for frame in (yield from nic.receive(ENTRIES)):
            payload = frame[ETHERNET_HEADER_BYTES:]
            if len(payload) < _NUMBER.size:
                return False
            (told,) = _NUMBER.unpack_from(payload)
            if frame[:ETHERNET_HEADER_BYTES] != own + other + _ETHER_TYPE or payload != self._payload(peer, told):
                return False
        yield from nic.send([other + own + _ETHER_TYPE + self._payload(self.placement.vm, number)])
        return True

    def _payload(self, vm: str, number: int) -> bytes:
        """What a machine sends in a round."""
        length = self.parameters.frame_bytes // 8 * 8
        content = KeyedContent.of(replace(self.placement, vm=vm), DEVICE_WORK)
        return _NUMBER.pack(number) + _octets(content, number, length)


def _octets(content: KeyedContent, number: int, length: int) -> bytes:
    """Contents of a round, ``length`` a multiple of 8."""
    first = number % (1 << 32) << 32
    return content.words(np.arange(first, first + length // 8, dtype=np.uint64)).tobytes()


def _start_nvme(work: DeviceWork, device: int, _number: int) -> Steps[None]:
    yield from work.nvme(device).start()


def _start_gpu(work: DeviceWork, device: int, number: int) -> Steps[None]:
    yield from work.gpu(device, number).start()


def _start_nic(work: DeviceWork, device: int, _number: int) -> Steps[None]:
    yield from work.nic(device).start()


_STARTS: Mapping[CardKind, Callable[[DeviceWork, int, int], Steps[None]]] = {
    CardKind.NVME: _start_nvme, CardKind.GPU: _start_gpu, CardKind.NIC: _start_nic,
}  # fmt: skip
_STOPS: Mapping[CardKind, Callable[[DeviceWork, int], Steps[None]]] = {
    CardKind.NVME: lambda work, device: work.nvme(device).stop(),
    CardKind.GPU: lambda work, device: work.gpu(device).stop(),
    CardKind.NIC: lambda work, device: work.nic(device).stop(),
}
_JOBS: Mapping[CardKind, Job] = {
    CardKind.NVME: DeviceWork._store_and_load,  # noqa: SLF001 - of this file
    CardKind.GPU: DeviceWork._multiply,  # noqa: SLF001
    CardKind.NIC: DeviceWork._talk,  # noqa: SLF001
}


_STEPS: Mapping[int, Callable[[DeviceWork, Registers], Block]] = {
    OPEN_RIP: DeviceWork._open,  # noqa: SLF001
    ATTACH_RIP: DeviceWork._attach,  # noqa: SLF001
    WORK_RIP: DeviceWork._work,  # noqa: SLF001
    DETACH_RIP: DeviceWork._detach,  # noqa: SLF001
}


def _trusting(block: Block) -> Block:
    try:
        return (yield from block)
    except (DeviceUntrusted, TdiRefused, MessageRefused, GhcbUntrusted, SvsmUntrusted):
        return NOT_TRUSTED
