"""TIO_DEV_*: contexts of devices, their connections, and what the host may ask of them; TIO_ROLL_KEY.

Statuses are those of the sheet's table of refusals (``spec/tio/tio-overview.md``, section 3) where it names one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from psp.commands import SnpCommand
from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.tsm import tio_buffers as buffers
from psp.tsm.connecting import connect
from psp.tsm.contexts import DEVICE_CONTEXT_BYTES, MOST_DEVICES, Contexts, DeviceContext, TdiContext
from psp.tsm.device_link import DeviceLink
from psp.tsm.exchange_records import ObjectId, ResultObject
from psp.tsm.spdm_loop import SpdmLoop, Steps
from psp.tsm.status_records import (
    DIGEST_VALID,
    NO_FW_UPDATE,
    PENDING_IS_TDI,
    REQUEST_PENDING,
    DeviceState,
    DeviceStatusRecord,
)
from psp.tsm.trusted_io import TrustedIo
from tio.spdm.identity_messages import SLOTS
from tio.tdisp.messages import LockFlags

_FUNCTION = 0b111


@dataclass(slots=True)
class DeviceSwitches:
    """What no text at hand settles, and what a laboratory may switch off."""

    refuses_early_roll: bool = True
    """TIO_ROLL_KEY is IN_USE while a sub-stream has the set in use that is to be programmed; without, streams fail."""
    fresh_needs_capability: bool = True
    """What a device measured counts as fresh only if it measures when it is asked (MEAS_FRESH_CAP), and not at its last
    reset. The sheet calls fresh what bears the guest's nonce; without the switch nothing else is asked."""
    wants_encryption: bool = True
    """A device is connected only by a session that encrypts; without, one of MAC alone brings it its keys."""


class DeviceCommands:
    """Handlers of the commands. ``unlock`` takes a TDI from its guest without asking the device."""

    def __init__(
        self,
        memory: HostMemory,
        contexts: Contexts,
        loop: SpdmLoop,
        trusted_io: Callable[[], TrustedIo],
        random: Callable[[str, int], bytes],
        unlock: Callable[[TdiContext], None],
    ) -> None:
        self.switches = DeviceSwitches()
        self._memory = memory
        self._contexts = contexts
        self._loop = loop
        self._trusted_io = trusted_io
        self._random = random
        self._unlock = unlock

    # Contexts.

    def create(self, order: buffers.DeviceCreate) -> None:
        """TIO_DEV_CREATE. Another context of a device is let go first if its page is lost."""
        if order.requester & _FUNCTION:
            raise PspError(Status.INVALID_PARAM)
        spa = self._contexts.free_page(order.device, DEVICE_CONTEXT_BYTES)
        same = [
            one
            for one in self._contexts.devices.values()
            if (one.segment, one.requester) == (order.segment, order.requester) or one.spa == spa
        ]
        if any(self._contexts.is_intact(one) for one in same):
            raise PspError(Status.IN_USE)
        root_port = self._trusted_io().root_port(order.segment, order.root_port)
        if root_port is None:
            raise PspError(Status.INVALID_PARAM)
        if len(self._contexts.devices) - len(same) >= MOST_DEVICES:
            raise PspError(Status.RESOURCE_LIMIT)
        for one in same:
            self.forget(one)
        number = self._contexts.take_page(spa)
        self._contexts.devices[spa] = DeviceContext(
            spa, number, order.requester, order.segment, order.root_port, root_port
        )

    def reclaim(self, order: buffers.DeviceReclaim) -> None:
        """TIO_DEV_RECLAIM."""
        device = self._device(order)
        if device.pending is not None:
            raise PspError(Status.IN_USE)
        if device.link is not None:
            raise PspError(Status.INVALID_DEV_STATE)
        if device.tdis:
            raise PspError(Status.RECLAIM_REQUIRED)
        self.forget(device)

    def forget(self, device: DeviceContext, *, reclaim: bool = False) -> None:
        """Leave nothing of a device, whatever it is doing; ``reclaim`` hands its pages to the host at once."""
        self._cut(device)
        for tdi in device.tdis.values():
            self._contexts.drop(tdi, reclaim=reclaim)
        self._contexts.drop(device, reclaim=reclaim)
        del self._contexts.devices[device.spa]

    def status(self, order: buffers.DeviceStatus) -> None:
        """TIO_DEV_STATUS."""
        device = self._device(order)
        self._memory.check_writable(order.address, DeviceStatusRecord.SIZE)
        pending, link = device.pending, device.link
        tdi = None if pending is None else pending.tdi
        locked = any(one.binding and one.binding.lock_flags & LockFlags.NO_FW_UPDATE for one in device.bound)
        record = DeviceStatusRecord(
            DeviceStatusRecord.SIZE,
            DeviceState.CREATED if link is None else DeviceState.CONNECTED,
            REQUEST_PENDING * (pending is not None) | PENDING_IS_TDI * (tdi is not None),
            device.certificate_slot,
            device.requester,
            device.segment,
            0 if link is None else link.tc_mask,
            0 if pending is None else pending.command,
            b"" if tdi is None else tdi.interface_id,
            DIGEST_VALID * bool(device.measurements_digest) | NO_FW_UPDATE * locked,
            b"" if link is None else link.stream_id_bytes,
            device.certificates_digest,
            device.measurements_digest,
            len(device.tdis),
            len(device.bound),
            0 if link is None else link.algorithms,
        )
        self._memory.write(order.address, record.pack())

    # Connections.

    def connect(self, order: buffers.DeviceConnect) -> None:
        """TIO_DEV_CONNECT; of a device whose connection is broken, once no TDI of it is bound, a new one."""
        device = self._device(order)
        self._loop.carry(device, SnpCommand.TIO_DEV_CONNECT, order, partial(self._begin_connect, device, order))

    def _begin_connect(self, device: DeviceContext, order: buffers.DeviceConnect) -> Steps:
        classes = [one for one in range(buffers.TRAFFIC_CLASSES) if order.tc_mask >> one & 1]
        streams = {one: order.stream_ids[one] for one in classes}
        distinct = len(set(streams.values())) == len(streams)
        if 0 not in streams or not distinct or order.certificate_slot >= SLOTS:
            raise PspError(Status.INVALID_PARAM)
        if device.link is not None and not device.link.broken:
            raise PspError(Status.INVALID_DEV_STATE)
        if device.bound or self._contexts.claims(device, frozenset(streams.values())):
            raise PspError(Status.IN_USE)
        return self._connect(device, order.certificate_slot, streams)

    def _connect(self, device: DeviceContext, slot: int, streams: dict[int, int]) -> Steps:
        self._drop_link(device)
        device.claimed = frozenset(streams.values())
        try:
            found = yield from connect(
                self._draw(device), device.root_port, slot, streams, device.certificates_digest,
                wants_encryption=self.switches.wants_encryption,
            )  # fmt: skip
        except BaseException:  # Also where the steps are thrown away.
            device.claimed = frozenset()
            raise
        device.link, device.certificate_slot = found.link, slot
        device.certificates_digest = found.certificates_digest
        device.measurements_digest = found.measurements_digest
        return b""

    def disconnect(self, order: buffers.DeviceOrder) -> None:
        """TIO_DEV_DISCONNECT; by force it asks nobody, ends what waits, and takes TDIs from their guests."""
        device = self._device(order)
        if order.flags & buffers.FORCE:
            if device.link is None and device.pending is None:
                raise PspError(Status.INVALID_DEV_STATE)
            self._cut(device)
            return
        self._loop.carry(device, SnpCommand.TIO_DEV_DISCONNECT, order, partial(self._begin_disconnect, device))

    def _begin_disconnect(self, device: DeviceContext) -> Steps:
        link = linked(device)
        if device.bound:
            raise PspError(Status.IN_USE)
        return self._disconnect(device, link)

    def _disconnect(self, device: DeviceContext, link: DeviceLink) -> Steps:
        yield from link.take_keys()
        yield from link.requester.end_session(link.session)
        self._drop_link(device)
        return b""

    def _cut(self, device: DeviceContext) -> None:
        self._loop.cancel(device)
        for tdi in device.bound:
            self._unlock(tdi)
        self._drop_link(device)

    def _drop_link(self, device: DeviceContext) -> None:
        if device.link is not None:
            device.link.stop_root_port()
            device.link = None
            device.claimed = frozenset()
            device.measurements_digest = b""

    # What a connected device is asked.

    def certificates(self, order: buffers.DeviceOrder) -> None:
        """TIO_DEV_CERTIFICATES: the chain, as the device's slot holds it."""
        device = self._device(order)
        begin = partial(self._while_linked, device, partial(self._certificates, device))
        self._loop.carry(device, SnpCommand.TIO_DEV_CERTIFICATES, order, begin)

    def _certificates(self, device: DeviceContext, link: DeviceLink) -> Steps:
        chain = yield from link.requester.certificates(link.slot, link.session)
        if link.digest(chain.raw) != device.certificates_digest:
            link.broken = True
            raise PspError(Status.DEV_CERT_CHANGED)
        return result(ObjectId.CERTIFICATES, device, chain.raw)

    def measurements(self, order: buffers.DeviceMeasurements) -> None:
        """TIO_DEV_MEASUREMENTS: all that the device measures, signed, with the nonce that was handed in.

        The blob is the request and the response as they went by (``measurement_blob``).
        """
        device = self._device(order)
        begin = partial(self._while_linked, device, partial(self._measure, device, order))
        self._loop.carry(device, SnpCommand.TIO_DEV_MEASUREMENTS, order, begin)

    def _measure(self, device: DeviceContext, order: buffers.DeviceMeasurements, link: DeviceLink) -> Steps:
        yield from link.requester.measurements(
            slot=link.slot, raw=bool(order.flags), nonce=order.nonce, session=link.session
        )
        evidence = link.requester.evidence
        device.measurements_digest = link.digest(evidence)
        device.measured += link.measures_anew or not self.switches.fresh_needs_capability
        return result(ObjectId.MEASUREMENTS, device, evidence)

    def roll_key(self, order: buffers.DeviceOrder) -> None:
        """TIO_ROLL_KEY: every stream gets the other set's keys, and senders take them at once.

        A sub-stream on which no packet went since the keys were rolled last still has the set of before in use: the
        command is IN_USE, or by a switch its end fails, as the standard has it, and what was bound to the stream goes
        to ERROR.
        """
        device = self._device(order)
        begin = partial(self._while_linked, device, self._begin_roll)
        self._loop.carry(device, SnpCommand.TIO_ROLL_KEY, order, begin)

    def _begin_roll(self, link: DeviceLink) -> Steps:
        if self.switches.refuses_early_roll and not link.may_roll():
            raise PspError(Status.IN_USE)
        return self._roll(link)

    def _roll(self, link: DeviceLink) -> Steps:
        yield from link.give_keys(1 - link.key_set)
        return b""

    @staticmethod
    def _while_linked(device: DeviceContext, steps: Callable[[DeviceLink], Steps]) -> Steps:
        """Steps that need a connection and nothing else."""
        return steps(linked(device))

    def _device(
        self, order: buffers.DeviceReclaim | buffers.DeviceStatus | buffers.DeviceConnect | buffers.DeviceOrder
        | buffers.DeviceMeasurements
    ) -> DeviceContext:  # fmt: skip
        return self._contexts.device(order.device)

    def _draw(self, device: DeviceContext) -> Callable[[int], bytes]:
        purpose = f"TSM {device.segment:02x}:{device.requester:04x}"
        return lambda length: self._random(purpose, length)


def linked(device: DeviceContext) -> DeviceLink:
    """A device's connection. Raises PspError: INVALID_DEV_STATE without, ERR_IN_DEV_CONN for one that is broken."""
    if device.link is None:
        raise PspError(Status.INVALID_DEV_STATE)
    if device.link.broken:
        raise PspError(Status.ERR_IN_DEV_CONN)
    return device.link


def result(object_id: ObjectId, device: DeviceContext, blob: bytes) -> bytes:
    """The data object of a blob about a device."""
    length = ResultObject.SIZE + len(blob)
    return ResultObject(object_id, length, requester=device.requester, segment=device.segment).pack() + blob

