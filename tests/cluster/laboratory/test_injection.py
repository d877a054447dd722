"""Events that a hypervisor injects or swallows: what each switch and mechanism is good for (rows 24 to 26)."""

from __future__ import annotations

import pytest

from cluster.laboratory.protection import Column, products
from cluster.laboratory.rows import ROWS, verdicts
from cluster.laboratory.scene import Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Entry, Transcript
from cluster.oracle.verdict import judge
from node.operations import Fault, FaultKind, HostRead, NestedUnmap, VmcbLoad, VmcbStore, VmKick, Write
from node.platform import Platform, Protection
from node.vmsa import SevFeature
from workloads.attacks.injection import masked_tick
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.service import BEFORE_STEPS, RESTS, TORN, WHOLE
from workloads.attacks.target import LET_IT_RUN
from workloads.attacks.vault import PAGE_BYTES

REST, ALT = int(SevFeature.RESTRICTED_INJECTION), int(SevFeature.ALTERNATE_INJECTION)
SERVING = [row for row in ROWS if row.startswith(("24", "25"))]
"""Rows that inject."""


def outcomes(row: str, **setting: object) -> set[str]:
    return {one.outcome.value for one in verdicts(row, Setting(Column.SEV_SNP, "Milan", **setting))}  # type: ignore[arg-type]


LIVES = [(column, 0) for column in Column] + [(Column.SEV_SNP, features) for features in (REST, ALT, REST | ALT)]


@pytest.mark.parametrize(("column", "features"), LIVES)
def test_a_service_that_nobody_disturbs_keeps_its_promises(column: Column, features: int) -> None:
    def harmless(target):
        for _ in range(2 * RESTS):
            yield (HostRead(target.spare[0], 16), VmKick(target.victim.vm, 0))
            yield LET_IT_RUN

    ledger, transcript = Ledger(), Transcript()
    ledger.protect("victim")
    scene = Scene(Setting(column, products(column)[-1], victim="service", sev_features=features), ledger, transcript)
    scene.play(harmless)
    victim = scene.host.guests["victim"]
    assert victim.vcpus[0].registers.r13 == 2
    assert judge(ledger, transcript).evidence == "nothing but garbage"
    entries = [one for one in transcript.entries if isinstance(one, Entry) and one.actor.name == "victim"]
    faults = {one.answer.kind for one in entries if isinstance(one.answer, Fault)}
    assert faults <= {FaultKind.VMM_COMMUNICATION}
    # All but that of its timer, which nobody rang.
    stored = {one.operation.gpa for one in entries if isinstance(one.operation, Write)}
    assert {gpa for gpa, octets in ledger.promises("victim").items() if octets != WHOLE} <= stored


@pytest.mark.parametrize(
    ("row", "outcome"),
    [("24a", {"corrupted"}), ("24b", {"blocked", "corrupted"}), ("25a", {"blocked"}), ("25b", {"blocked"})],
)
def test_restricted_injection_alone_moves_interrupts_and_filters_none(row: str, outcome: set[str]) -> None:
    # The doorbell has no room for vector 0, which means that none waits, nor for an exception.
    assert outcomes(row, sev_features=REST) == outcome


def test_a_restricted_guest_takes_the_interrupt_when_it_is_ready() -> None:
    ledger, transcript = act_out(Setting(Column.SEV_SNP, "Milan", victim="service", sev_features=REST), masked_tick)
    watch = [one.operation.data for one in transcript.entries if isinstance(one, Entry) and _watches(one.operation)]
    assert watch == [WHOLE]
    assert judge(ledger, transcript).outcome == "blocked"


def _watches(operation: object) -> bool:
    return isinstance(operation, Write) and operation.data in (WHOLE, TORN)


def test_a_verifying_handler_still_loses_what_is_in_rax() -> None:
    assert outcomes("25a", vc_handler_verifies=True) == {"leaked"}
    assert outcomes("25a", sev_features=REST, vc_handler_verifies=True) == {"blocked"}


def test_the_leak_of_row_25a_is_no_leak_of_sixteen_bytes() -> None:
    (attack,) = ROWS["25a"].attacks
    verdict = judge(*act_out(Setting(Column.SEV_SNP, "Milan", victim="service"), attack))
    assert verdict.outcome != "leaked"


OPEN = {"24a": "corrupted", "24b": "corrupted", "24c": "corrupted", "25a": "leaked", "25b": "leaked"}


@pytest.mark.parametrize("features", [REST, ALT])
def test_without_its_mechanism_a_feature_stops_nothing(features: int) -> None:
    protection = Protection.RESTRICTED_INJECTION if features == REST else Protection.ALTERNATE_INJECTION
    platform = Platform(disabled=frozenset({protection}))
    assert {row: outcomes(row, sev_features=features, platform=platform) for row in SERVING} == {
        row: {outcome} for row, outcome in OPEN.items()
    }


def test_a_guest_that_vmrun_ignores_the_hypervisors_events_for_is_as_safe() -> None:
    platform = Platform(alternate_injection_refuses=False)
    shut = {row: outcomes(row, sev_features=ALT, platform=platform) for row in SERVING}
    assert shut == {row: {"blocked"} for row in SERVING}


@pytest.mark.parametrize("column", [Column.PLAIN, Column.SEV_ES, Column.SEV_SNP])
def test_a_debug_exception_that_is_injected_again_is_not_lost(column: Column) -> None:
    def exit_and_go_on(target):
        victim = target.victim
        for _ in range(BEFORE_STEPS):
            yield LET_IT_RUN
        yield smash(victim.stack)
        yield (NestedUnmap(victim.vm, victim.stack.gpa, PAGE_BYTES),)
        yield LET_IT_RUN
        yield (point(victim, victim.stack, victim.stack.spa),)
        code, kept = yield (VmcbLoad(victim.vm, 0, "EXITCODE"), VmcbLoad(victim.vm, 0, "EXITINTINFO"))
        assert (code, kept) == (0x400, 1 << 31 | 3 << 8 | 1)
        yield (VmcbStore(victim.vm, 0, "EVENTINJ", kept), VmKick(victim.vm, 0))
        yield LET_IT_RUN

    setting = Setting(column, products(column)[-1], victim="service")
    assert judge(*act_out(setting, exit_and_go_on)).outcome == "blocked"
