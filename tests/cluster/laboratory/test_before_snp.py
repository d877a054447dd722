"""Rows that begin before SNP does turn on the mechanism that they name, and on nothing else of the scene."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.rows import ROWS
from cluster.laboratory.scene import VICTIM, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Entry, Stall, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.hypervisor_port import LaunchRefused
from node.operations import HostRead, PspAnswer, PspCommand, VmPreempt, VmRun
from node.platform import Platform
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES
from workloads.attacks import iommu_log, rmp_forgery
from workloads.attacks.target import LET_IT_RUN

SNP = Setting(Column.SEV_SNP, "Milan")


def harmless(target):
    yield (HostRead(target.spare[0], 16),)


def scene_of(row: str, product: str = "Milan", **platform: bool) -> tuple[Scene, Transcript]:
    line, transcript = ROWS[row], Transcript()
    setting = Setting(
        Column.SEV_SNP, product, Platform(caches=line.caches, fabric_locked=line.fabric_locked, **platform),
        prelude=line.prelude,
    )  # fmt: skip
    return Scene(setting, Ledger(), transcript), transcript


def own_entries(scene: Scene) -> set[bool]:
    """Whether pages of the RMP are assigned, as its entries say."""
    rmp = scene.host.board.rmp
    assert rmp is not None
    return {rmp.entry(one.spa + at).assigned for one in rmp.layout.arrays for at in (0, PAGE_BYTES)}


@pytest.mark.parametrize("row", ["36", "37"])
@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_the_firmware_reports_success_over_a_table_that_does_not_cover_itself(row: str, product: str) -> None:
    scene, transcript = scene_of(row, product)
    statuses = [
        one.answer.status
        for one in transcript.entries
        if isinstance(one, Entry) and isinstance(one.answer, PspAnswer) and one.operation.command == SnpCommand.INIT_EX
    ]
    assert statuses == [0]
    assert own_entries(scene) == {False}


def test_without_either_it_does_and_a_barrier_keeps_cores_from_its_pages() -> None:
    assert own_entries(Scene(SNP, Ledger(), Transcript())) == {True}
    fixed, _ = scene_of("36", rmp_init_barrier=True)
    assert own_entries(fixed) == {True}


@pytest.mark.parametrize("row", ["36", "37"])
def test_the_forger_alone_gets_nowhere(row: str) -> None:
    plain = replace(SNP, platform=Platform(caches=ROWS[row].caches))
    assert judge(*act_out(plain, rmp_forgery.turn_debugging_on)).outcome is Outcome.BLOCKED


def test_a_locked_fabric_takes_no_routes() -> None:
    locked = replace(SNP, prelude=rmp_forgery.route_to_nowhere)
    assert judge(*act_out(locked, rmp_forgery.turn_debugging_on)).outcome is Outcome.BLOCKED


def test_a_fix_refuses_to_start_and_nothing_else_may() -> None:
    with pytest.raises(LaunchRefused):
        scene_of("37", fabric_lock_checked=True)
    short = replace(SNP, platform=Platform(iommu_write_safe=True), prelude=iommu_log.short_log)
    assert judge(*act_out(short, harmless)).outcome is Outcome.BLOCKED
    # Firmware with its fixes starts on a host that nobody has touched.
    fixed = Platform(iommu_write_safe=True, fabric_lock_checked=True, rmp_init_barrier=True, alias_check=True)
    _, transcript = act_out(replace(SNP, platform=fixed), harmless)
    refused = [one for one in transcript.entries if isinstance(one, Entry) and isinstance(one.operation, PspCommand)]
    assert {one.answer.status for one in refused} == {0}


def test_the_log_lies_right_below_the_value_and_is_the_firmwares() -> None:
    scene, _ = scene_of("41")
    target, rmp = scene.target, scene.host.board.rmp
    assert rmp is not None
    assert 0 < target.victim.value.spa - target.ground.log < 512 << 10
    log = rmp.entry(target.ground.log)
    assert (log.assigned, log.immutable, log.asid) == (True, True, 0)
    assert rmp.entry(target.victim.value.spa).asid == target.victim.asid


def test_a_thread_flushed_for_each_vcpu_poisons_nobody() -> None:
    """Row 22 turns on the flush: with TLB_CONTROL as KVM sets it, the same moves change nothing."""

    def careful(target):
        yield LET_IT_RUN
        for vcpu in (0, 1):
            old = scene.host.board.vmcb(VICTIM, vcpu)
            scene.host.board.vmcbs[VICTIM][vcpu] = replace(old, tlb_control=3)
            yield (VmPreempt(VICTIM, vcpu), VmRun(VICTIM, vcpu, 9))
            yield LET_IT_RUN

    for column in (Column.PLAIN, Column.SEV, Column.SEV_ES):
        ledger, transcript = Ledger(), Transcript()
        scene = Scene(Setting(column, "Milan", Platform(tlb_entries=64), two_processes=True), ledger, transcript)
        scene.play(careful)
        assert judge(ledger, transcript).outcome is Outcome.BLOCKED


def test_a_victim_that_nobody_runs_is_seen_to_stand_still() -> None:
    ledger, transcript = Ledger(), Transcript()
    scene = Scene(SNP, ledger, transcript)

    def stop(target):
        yield (HostRead(target.spare[0], 16),)
        scene.host.vcpus.cores.contention.advance(scene.host.clock.now_ns)
        scene.host.guests[VICTIM].vcpus[0].epoch += 1  # its timer will not fire
        yield LET_IT_RUN

    scene.play(stop)
    assert Stall(VICTIM) in transcript.entries
    assert judge(ledger, transcript).outcome is Outcome.DOS
