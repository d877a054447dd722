"""The firmware as TSM: TIO commands, the device's security module at the other end, and what guests ask of it.

How a host drives it
    SNP_INIT_EX with ``SNP_INIT_TIO``, TIO_INIT, TIO_STATUS: how long buffers and contexts must be. Contexts, the
    request, scratch and output buffers and every page that a status or answer goes to are lent (Firmware state:
    RMPUPDATE to assigned, immutable, ASID 0); the response buffer and pages of scatter lists stay the host's. Every
    buffer, that of responses too, begins with a ``BufferHeader``, whose capacity the host fills in before it lends the
    page and before it gives a command the first time.

    TIO_DEV_CREATE, then TIO_DEV_CONNECT and every other command with the four buffers (``SpdmOrder``) go like this::

        while command(order) == SPDM_REQUEST:
            packet = parse_message(ObjectId.REQUEST, payload of the request buffer)
            answer = what the device's DOE mailbox says to it; object type 2 if packet.secured, else 1
            response buffer = BufferHeader(capacity, payload=padded(n)) + pack_message(ObjectId.RESPONSE, answer)

    with the identical ``order`` each time. EXPAND_BUFFER_LENGTH_REQUEST instead: the output buffer's header says which
    capacity it needs; another one goes into ``order`` and the command is given again. RESYNC_REQ: the response buffer
    held no response; the packet is in the request buffer still. A forced TIO_DEV_DISCONNECT or TIO_TDI_UNBIND ends
    whatever waits. A TDI is named by ``tio.tdisp.InterfaceId(requester id).pack()``.

    Results lie in the output buffer: a ``ResultObject`` and a blob, of which firmware tells the guest the digest: a
    certificate chain (``tio.spdm.certificate_chain``), measurements (``parse_measurement_blob``), an interface report
    (``tio.tdisp``).

What lies where
    Layouts of commands: ``tio_buffers``; of what statuses write: ``status_records``; of buffers: ``exchange_records``;
    scatter-list addresses: ``scatter_address``; messages of guests: ``guest_messages``. This module hands them on; the
    firmware's own parts are imported from their files.
"""

from __future__ import annotations

from psp.tsm.exchange_records import (
    BufferHeader,
    DataType,
    MessageObject,
    ObjectId,
    ResultObject,
    pack_message,
    padded,
    parse_message,
)
from psp.tsm.guest_messages import (
    NON_TEE,
    WRITE,
    MmioConfigRequest,
    MmioConfigResponse,
    MmioConfigStatus,
    MmioValidateRequest,
    MmioValidateResponse,
    MmioValidateStatus,
    SdteWriteRequest,
    SdteWriteResponse,
    SdteWriteStatus,
    TdiInfoRequest,
    TdiInfoResponse,
    TdiInfoStatus,
    ValidateFlags,
)
from psp.tsm.measurement_blob import MeasurementBlob, parse_measurement_blob
from psp.tsm.scatter_address import data_page, pack_list, scatter_page
from psp.tsm.secure_device_entry import ENTRY_BYTES, SecureDeviceEntry
from psp.tsm.status_records import DeviceState, DeviceStatusRecord, TdiInfoRecord, TdiStatusRecord, TioStatusRecord
from psp.tsm.tio_buffers import (
    FORCE,
    RAW_BIT_STREAM,
    RUN,
    DeviceConnect,
    DeviceCreate,
    DeviceMeasurements,
    DeviceOrder,
    DeviceReclaim,
    DeviceStatus,
    FenceClear,
    FenceStatus,
    SpdmOrder,
    TdiBind,
    TdiCreate,
    TdiInfo,
    TdiOrder,
    TdiReclaim,
    TdiStatus,
    TioGuestRequest,
    TioInit,
    TioOrder,
    TioStatus,
)

__all__ = [
    "NON_TEE",
    "WRITE",
    "MmioConfigRequest",
    "MmioConfigResponse",
    "MmioConfigStatus",
    "MmioValidateRequest",
    "MmioValidateResponse",
    "MmioValidateStatus",
    "SdteWriteRequest",
    "SdteWriteResponse",
    "SdteWriteStatus",
    "TdiInfoRequest",
    "TdiInfoResponse",
    "TdiInfoStatus",
    "ValidateFlags",
    "ENTRY_BYTES",
    "FORCE",
    "RAW_BIT_STREAM",
    "RUN",
    "BufferHeader",
    "DataType",
    "MeasurementBlob",
    "parse_measurement_blob",
    "DeviceConnect",
    "DeviceCreate",
    "DeviceMeasurements",
    "DeviceOrder",
    "DeviceReclaim",
    "DeviceState",
    "DeviceStatus",
    "DeviceStatusRecord",
    "FenceClear",
    "FenceStatus",
    "MessageObject",
    "ObjectId",
    "ResultObject",
    "SecureDeviceEntry",
    "SpdmOrder",
    "TdiBind",
    "TdiCreate",
    "TdiInfo",
    "TdiInfoRecord",
    "TdiOrder",
    "TdiReclaim",
    "TdiStatus",
    "TdiStatusRecord",
    "TioGuestRequest",
    "TioInit",
    "TioOrder",
    "TioStatus",
    "TioStatusRecord",
    "data_page",
    "pack_list",
    "pack_message",
    "padded",
    "parse_message",
    "scatter_page",
]
