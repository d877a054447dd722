"""A host cannot get at the RMP, the IOMMU's logs or the trusted region through firmware, by operations alone."""

from __future__ import annotations

import pytest
from rmp_laboratory import COMMAND_PAGE, FIRMWARE, GUEST_SPA, Laboratory, give, laboratory, page_of

from node import operations as op
from node.host_bring_up import TRUSTED_REGION_BYTES
from node.iommu_driver import EVENTS, SEMAPHORE
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

PRODUCTS = ["Milan", "Turin"]
OLD, NEW = b"what was before.", b"what came later."
TRUSTED = 16 << 20
FREE = RmpEntry()


def reclaim(lab: Laboratory, address: int) -> Status:
    return lab.firmware(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(address))


def legacy(lab: Laboratory, command: LegacyCommand, spa: int, data: bytes = b"") -> Status:
    (answer,) = lab.host(op.PspCommand(command, spa, data))
    assert isinstance(answer, op.PspAnswer)
    return Status(answer.status)


def kept_out(lab: Laboratory, spa: int) -> bool:
    """Whether the host can neither take a page nor store to it."""
    code, store = lab.host(op.RmpUpdate(spa, PAGE_BYTES, FREE), op.HostWrite(spa, b"forged"))
    return code != 0 and isinstance(store, op.Fault) and store.kind is op.FaultKind.RMP_FAULT


def page_of_entry(lab: Laboratory) -> int:
    return lab.entries_spa() // PAGE_BYTES * PAGE_BYTES


@pytest.mark.parametrize("product", PRODUCTS)
def test_ciphertext_is_not_replayed_by_way_of_a_reclaimed_rmp(product: str) -> None:
    lab = laboratory(product)
    give(lab, page_of())
    assert lab.guest("one", op.Write(0, OLD)) == (None,)
    (ciphertext,) = lab.host(op.HostRead(GUEST_SPA, len(OLD)))
    assert isinstance(ciphertext, bytes)
    assert lab.guest("one", op.Write(0, NEW)) == (None,)
    table, entry = lab.table(), lab.entries_spa()
    assert reclaim(lab, page_of_entry(lab)) is Status.INVALID_PAGE_STATE
    assert kept_out(lab, page_of_entry(lab))
    stores = lab.host(op.HostWrite(entry, bytes(16)), op.HostWrite(GUEST_SPA, ciphertext))
    assert all(isinstance(store, op.Fault) for store in stores)
    assert lab.table() == table
    assert lab.guest("one", op.Read(0, len(NEW))) == (NEW,)


@pytest.mark.parametrize("product", PRODUCTS)
def test_firmware_writes_no_answer_into_the_rmp(product: str) -> None:
    lab = laboratory(product)
    give(lab, page_of())
    table, page = lab.table(), page_of_entry(lab)
    assert legacy(lab, LegacyCommand.PLATFORM_STATUS, lab.entries_spa()) is Status.INVALID_ADDRESS
    assert lab.firmware(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(page)) is Status.INVALID_PAGE_STATE
    assert lab.firmware(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(page)) is Status.INVALID_PAGE_STATE
    assert lab.table() == table


@pytest.mark.parametrize("page", [EVENTS, SEMAPHORE])
def test_records_of_the_iommu_are_not_forged(page: int) -> None:
    lab = laboratory("Milan")
    assert reclaim(lab, page) is Status.INVALID_PAGE_STATE
    assert kept_out(lab, page)


def test_the_trusted_region_is_firmware_s_until_shutdown() -> None:
    lab = laboratory("Milan")
    assert legacy(lab, LegacyCommand.SHUTDOWN, 0) is Status.SUCCESS
    entry = RmpEntry(assigned=True, immutable=True, large=True)
    assert lab.host(op.RmpUpdate(TRUSTED, TRUSTED_REGION_BYTES, entry)) == (0,)
    init = buffers.Init(buffers.INIT_ES, TRUSTED, TRUSTED_REGION_BYTES)
    assert legacy(lab, LegacyCommand.INIT, COMMAND_PAGE, init.pack()) is Status.SUCCESS
    assert reclaim(lab, TRUSTED | 1) is Status.INVALID_PAGE_STATE
    assert kept_out(lab, TRUSTED)
    assert legacy(lab, LegacyCommand.SHUTDOWN, 0) is Status.SUCCESS
    assert reclaim(lab, TRUSTED | 1) is Status.SUCCESS


def test_a_page_lent_for_a_command_comes_back() -> None:
    lab = laboratory("Turin")
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, FIRMWARE)) == (0,)
    assert lab.firmware(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(GUEST_SPA)) is Status.SUCCESS
    assert reclaim(lab, GUEST_SPA) is Status.SUCCESS
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, FREE), op.HostWrite(GUEST_SPA, b"mine")) == (0, None)


def test_logs_come_back_after_the_iommu_is_shut_down() -> None:
    lab = laboratory("Milan")
    assert legacy(lab, LegacyCommand.SHUTDOWN, 0) is Status.SUCCESS
    lab.host(op.Wbinvd())
    assert lab.firmware(SnpCommand.DF_FLUSH) is Status.SUCCESS
    down = buffers.SnpShutdownEx(8, buffers.SNP_SHUTDOWN_IOMMU)
    assert lab.firmware(SnpCommand.SHUTDOWN_EX, down) is Status.SUCCESS
    for page in (EVENTS, SEMAPHORE):
        assert lab.host(op.RmpUpdate(page, PAGE_BYTES, FREE), op.HostWrite(page, b"mine")) == (0, None)
