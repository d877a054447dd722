"""Chips on cards: the device's side of the bus, and the link to it.

What this floor owns
    The framing of PCI DOE (``doe``), and device models whose DMA goes through
    a port object they are handed (``dma_port``): an NVMe disk (``nvme``, its
    bytes in ``nvme_format``, its media in ``nvme_namespace``), and the few
    lines a driver needs to use it (``nvme_driver``); a paravirtual network card
    (``virtio_net``, its registers in ``virtio_mmio``, its rings in ``virtqueue``,
    its bytes in ``virtio_format``); a GPU (``gpu``, sealed work in ``gpu_channel``).

    The cards on which they stand (``nvme_card``, ``nic_card``, ``gpu_card``): a
    card (``card``) has an identity (``device_identity``), functions with TDIs
    (``card_functions``, ``pci``, ``tdisp``), a security module (``spdm``,
    ``device_security_module``) and its end of a link (``card_link``, ``completer``,
    ``card_dma``, ``ide``), at whose other end is the host's (``root_port``).

What it may not import
    Nothing of ours: this is the lowest floor. Nor clocks, event loops,
    sockets, threads or sources of randomness. A device is a pure state
    machine: register accesses and doorbells in, DMA and completions out.

Who is trusted here
    Nobody. Queue entries, PRP lists, doorbell values and data objects come
    from a driver that may be hostile. A malformed one gets the status code of
    the device's own specification, changes no media and costs bounded work.
    Exceptions are for our own callers: ``DmaFault`` is what a port answers
    when no memory is behind an address, ``DoeError`` what a parser says of
    bytes that are no data object.

What a device does not know
    How long it takes. It says what it did (``Served``), and the board that
    owns the cost table prices that.
"""

from __future__ import annotations

from tio.dma_port import DmaFault, DmaPort
from tio.doe import DataObject, DiscoveryTable, DoeError, ObjectType, parse_data_object
from tio.nvme import NvmeController, Served
from tio.nvme_driver import NvmeDriver
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

__all__ = [
    "DmaFault",
    "DmaPort",
    "NvmeController",
    "NvmeDriver",
    "NvmeNamespace",
    "Served",
    "Status",
    "DataObject",
    "DiscoveryTable",
    "DoeError",
    "ObjectType",
    "parse_data_object",
]
