"""Every TIO command on a device as a well-formed order."""

from __future__ import annotations

from collections.abc import Callable

from asking_guest import sealed
from device_bench import CONTEXT, MESSAGE, PORT, RID, STATUS, STREAM, TDI_CONTEXT, Bench
from toy_machine import GCTX, PAGE, context

from psp import tsm
from psp.commands import SnpCommand
from tio.tdisp import InterfaceId

Order = Callable[[Bench], tsm.TioOrder]


def message(bench: Bench) -> tsm.TioOrder:
    """TDI_INFO by the guest."""
    guest = context(bench.machine)
    asked = sealed(guest.vmpck(0), guest.message_counts[0] + 1, 19, b"\x08\x02" + bytes(14))
    bench.machine.bus.write(MESSAGE, asked.ljust(PAGE, b"\0"))
    return bench.guest_order()


C = SnpCommand
STREAMS = bytes((STREAM,)).ljust(8, b"\0")
DEVICE, TDI = {"device": CONTEXT}, {"device": CONTEXT, "tdi": TDI_CONTEXT}
ORDERS: dict[str, tuple[SnpCommand, Order]] = {
    "DEV_CREATE": (C.TIO_DEV_CREATE, lambda _: tsm.DeviceCreate(32, **DEVICE, requester=RID, root_port=PORT)),
    "DEV_RECLAIM": (C.TIO_DEV_RECLAIM, lambda _: tsm.DeviceReclaim(16, **DEVICE)),
    "DEV_CONNECT": (C.TIO_DEV_CONNECT, lambda b: b.order(tsm.DeviceConnect, tc_mask=1, stream_ids=STREAMS)),
    "DEV_DISCONNECT": (C.TIO_DEV_DISCONNECT, lambda b: b.order(tsm.DeviceOrder)),
    "DEV_DISCONNECT!": (C.TIO_DEV_DISCONNECT, lambda b: b.order(tsm.DeviceOrder, flags=tsm.FORCE)),
    "DEV_STATUS": (C.TIO_DEV_STATUS, lambda _: tsm.DeviceStatus(32, **DEVICE, address=STATUS)),
    "DEV_MEASUREMENTS": (C.TIO_DEV_MEASUREMENTS, lambda b: b.order(tsm.DeviceMeasurements)),
    "DEV_CERTIFICATES": (C.TIO_DEV_CERTIFICATES, lambda b: b.order(tsm.DeviceOrder)),
    "ROLL_KEY": (C.TIO_ROLL_KEY, lambda b: b.order(tsm.DeviceOrder)),
    "TDI_CREATE": (C.TIO_TDI_CREATE, lambda _: tsm.TdiCreate(48, **TDI, interface_id=InterfaceId(RID).pack())),
    "TDI_RECLAIM": (C.TIO_TDI_RECLAIM, lambda _: tsm.TdiReclaim(32, **TDI)),
    "TDI_BIND": (C.TIO_TDI_BIND, lambda b: b.bind_order()),
    "TDI_BIND+": (C.TIO_TDI_BIND, lambda b: b.bind_order(run_flags=tsm.RUN)),
    "TDI_UNBIND": (C.TIO_TDI_UNBIND, lambda b: b.tdi_order()),
    "TDI_UNBIND!": (C.TIO_TDI_UNBIND, lambda b: b.tdi_order(flags=tsm.FORCE)),
    "TDI_REPORT": (C.TIO_TDI_REPORT, lambda b: b.tdi_order()),
    "TDI_STATUS": (C.TIO_TDI_STATUS, lambda b: b.order(tsm.TdiStatus, tdi=TDI_CONTEXT, address=STATUS)),
    "TDI_INFO": (C.TIO_TDI_INFO, lambda _: tsm.TdiInfo(48, **TDI, address=STATUS)),
    "GUEST_REQUEST": (C.TIO_GUEST_REQUEST, message),
    "FENCE_CLEAR": (C.TIO_ASID_FENCE_CLEAR, lambda _: tsm.FenceClear(32, **DEVICE, gctx=GCTX)),
    "FENCE_STATUS": (C.TIO_ASID_FENCE_STATUS, lambda _: tsm.FenceStatus(32, **DEVICE, asid=2, address=STATUS)),
}
"""With ! by force, with + the run flag."""
