"""Real firmware brings a real card to a guest, by what a host carries; then the card works in private memory."""

from __future__ import annotations

import pytest
from iommu_boards import events
from rmp_laboratory import FIRMWARE, Laboratory, gctx, give, laboratory, page_of
from tio_host import TioHost
from trusted_cards import (
    ALLOWED,
    CANARY,
    CARDS,
    DATA,
    DEVICE_ID,
    FENCE,
    GPU,
    MMIO_GPA,
    PAGES,
    RING,
    STREAM,
    attach,
    bar,
    filled,
    work,
)

from node import operations as op
from node.iommu_events import EventCode
from node.platform import Platform
from psp import tsm
from psp.command_buffers import SNP_INIT_TIO, SNP_SHUTDOWN_IOMMU, GuestContextPage, SnpShutdownEx
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status
from psp.system_bus import PAGE_BYTES
from tio.gpu import GpuRegister
from tio.ide import StreamState
from tio.tdisp import TdiState

INFO, VALIDATE, SDTE_WRITE = 19, 21, 25


def attested() -> tuple[Laboratory, TioHost]:
    """A card that is connected, bound to guest one and runs; the guest has asked what it is."""
    lab = laboratory("Turin", Platform(cards=CARDS), init_flags=SNP_INIT_TIO)
    for gpa in (RING, FENCE, DATA):
        give(lab, page_of(gpa), offset=gpa)
    host = TioHost(lab)
    host.connect()
    host.bind()
    host.guest_asks(INFO, tsm.TdiInfoRequest(DEVICE_ID).pack())
    attach(lab, PAGES)
    spa = bar(lab)
    assert lab.host(op.NestedMap("one", MMIO_GPA, spa, PAGE_BYTES, large=False)) == (None,)
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, page_of(MMIO_GPA))) == (0,)
    return lab, host


def validated(host: TioHost, gpa: int = MMIO_GPA, offset: int = 0) -> tsm.MmioValidateStatus:
    asked = tsm.MmioValidateRequest(DEVICE_ID, gpa, 1, offset, 1, 0)
    answer = tsm.MmioValidateResponse.parse(host.guest_asks(VALIDATE, asked.pack()))
    return tsm.MmioValidateStatus(answer.status)


def allowed(host: TioHost) -> int:
    asked = tsm.SdteWriteRequest(DEVICE_ID, ALLOWED.pack()).pack()
    return tsm.SdteWriteResponse.parse(host.guest_asks(SDTE_WRITE, asked)).status


@pytest.fixture(scope="module")
def made() -> tuple[Laboratory, TioHost]:
    return attested()


def test_a_card_is_connected_bound_accepted_works_and_is_given_back(made: tuple[Laboratory, TioHost]) -> None:
    lab, host = made
    slot, spa = filled(lab), bar(lab)
    assert slot.card.tdi.state is TdiState.RUN
    assert slot.root_port.is_secure(STREAM)
    load = op.MmioLoad(MMIO_GPA + GpuRegister.MEMORY_BYTES, private=True)
    assert lab.guest("one", load) == (op.Fault(op.FaultKind.PAGE_NOT_VALIDATED, MMIO_GPA + GpuRegister.MEMORY_BYTES),)
    # Another address, another page of the report: refused, and nothing has changed.
    assert validated(host, MMIO_GPA + PAGE_BYTES) is tsm.MmioValidateStatus.NOT_MAPPED
    assert validated(host, offset=1) is tsm.MmioValidateStatus.NOT_ASSIGNED
    assert validated(host) is tsm.MmioValidateStatus.SUCCESS
    assert lab.board.bus.rmp_entry(spa).validated
    assert lab.guest("one", load) == (1 << 16,)
    lab.host(op.MmioRead(spa))
    assert allowed(host) == tsm.SdteWriteStatus.SUCCESS
    events(lab.board)
    assert work(lab)
    assert events(lab.board) == []
    assert CANARY[:16] not in host.seen
    # Given back: the guest's private memory is out of reach, and the page is the host's again.
    assert host.unbind() is Status.SUCCESS
    assert slot.card.tdi.state is TdiState.CONFIG_UNLOCKED
    assert not work(lab)
    host.take_back(spa)
    assert lab.host(op.MmioRead(spa + GpuRegister.MEMORY_BYTES)) == (1 << 16,)
    assert slot.card.port.streams[STREAM].state is StreamState.SECURE


def test_a_card_whose_guest_has_not_allowed_it_reaches_nothing() -> None:
    lab, host = attested()
    assert validated(host) is tsm.MmioValidateStatus.SUCCESS
    assert not work(lab)
    assert {one.code for one in events(lab.board)} == {EventCode.IO_PAGE_FAULT}


def test_it_took_few_batches_and_no_page_that_was_lent_is_the_host_s(made: tuple[Laboratory, TioHost]) -> None:
    lab, host = made
    assert 20 < host.exchanges < 60
    assert lab.host(op.RmpUpdate(48 << 20, PAGE_BYTES, FIRMWARE)) == (2,)


def test_a_guest_does_not_go_before_its_card() -> None:
    lab, host = attested()
    context = GuestContextPage(gctx("one"))
    assert lab.firmware(SnpCommand.DECOMMISSION, context) is Status.IN_USE
    dma = lab.board.trusted_dma
    assert dma is not None
    assert dma.binding(GPU.requester) is not None
    assert host.unbind(flags=tsm.FORCE) is Status.SUCCESS
    assert dma.binding(GPU.requester) is None
    assert lab.firmware(SnpCommand.DECOMMISSION, context) is Status.SUCCESS


def test_after_shutdown_a_card_is_nobody_s_and_its_link_has_no_keys() -> None:
    lab, _ = attested()
    dma = lab.board.trusted_dma
    assert dma is not None
    lab.host(op.PspCommand(LegacyCommand.SHUTDOWN), op.Wbinvd())
    assert lab.firmware(SnpCommand.DF_FLUSH) is Status.SUCCESS
    shutdown = SnpShutdownEx(SnpShutdownEx.SIZE, SNP_SHUTDOWN_IOMMU)
    assert lab.firmware(SnpCommand.SHUTDOWN_EX, shutdown) is Status.SUCCESS
    assert dma.binding(GPU.requester) is None
    assert not filled(lab).root_port.is_secure(STREAM)
