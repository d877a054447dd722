"""What a hypervisor sees of a victim's choices: by predictor, caches, counters and nested faults (rows 27 to 31)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.rows import verdicts
from cluster.laboratory.scene import Setting, act_out
from cluster.oracle.verdict import judge
from node.operations import HostBranch, HostClflush, HostTimedRead, VmPreempt, VmRun
from node.platform import Platform, Protection
from node.vmsa import SevFeature
from workloads.attacks.chooser import CALLEE, GADGET, PROBE_BYTES, SITE
from workloads.attacks.claims import Claim
from workloads.attacks.prime_and_probe import time_two_sets
from workloads.attacks.target import LET_IT_RUN

BTB, IBPB, PMC = SevFeature.BTB_ISOLATION, SevFeature.IBPB_ON_ENTRY, SevFeature.PMC_VIRTUALIZATION
MASKED = SevFeature.VMSA_REGISTER_PROTECTION


def outcome(row: str, features: int, disabled: Protection | None = None) -> str:
    platform = Platform(disabled=frozenset({disabled} if disabled else ()))
    setting = Setting(Column.SEV_SNP, "Turin", platform, sev_features=int(features))
    (one,) = verdicts(row, setting)
    return one.outcome.value


@pytest.mark.parametrize(
    ("features", "closed"),
    [(BTB, {"27"}), (IBPB, {"27"}), (PMC, {"29c"}), (MASKED, {"30"}), (BTB | PMC | MASKED, {"27", "29c", "30"}),
     (SevFeature.SECURE_TSC, set())],
)  # fmt: skip
def test_each_feature_closes_its_own_channel(features: int, closed: set[str]) -> None:
    # Nothing closes page faults and cache sets, and no feature the ciphertext of memory.
    found = {row: outcome(row, features) for row in ("27", "28", "29a", "29c", "30", "31")}
    assert found == {row: "blocked" if row in closed else "side_channel" for row in found}


def test_without_its_mechanism_a_feature_closes_nothing() -> None:
    assert outcome("27", BTB, Protection.BTB_ISOLATION) == "side_channel"
    assert outcome("29c", PMC, Protection.PMC_VIRTUALIZATION) == "side_channel"
    assert outcome("30", MASKED, Protection.REGISTER_NONCE) == "side_channel"
    assert outcome("27", BTB, Protection.PMC_VIRTUALIZATION) == "blocked"


@pytest.mark.parametrize(
    ("site", "trained", "timing"),
    [(SITE, CALLEE, True), (SITE, GADGET + 1, True), (SITE + 1, GADGET, True), (SITE, GADGET, False)],
)
def test_the_channel_is_the_predictors_and_the_caches(site: int, trained: int, timing: bool) -> None:
    # Trained to go where it goes anyway, or to no gadget, or elsewhere; or on a host whose loads all take the same.
    def listen(target):
        page = target.victim.outbox.spa
        bits = [0]
        for _ in range(32):
            yield (HostClflush(page, 1), HostClflush(page + PROBE_BYTES, 1), HostBranch(0, site, trained))
            yield LET_IT_RUN
            no, yes = yield (HostTimedRead(page), HostTimedRead(page + PROBE_BYTES))
            bits.append(int(yes < no))
        yield (Claim(tuple(bits)),)

    setting = Setting(Column.SEV_SNP, "Milan", Platform(cache_timing=timing), victim="chooser")
    assert judge(*act_out(setting, listen)).outcome == "blocked"


@pytest.mark.parametrize(("core", "shift", "timing", "expected"), [
    (0, 0, True, "side_channel"),
    (64, 0, True, "blocked"),  # on another core the victim finds its lines in that one's own cache
    (0, 1024, True, "blocked"),  # other sets than the victim's
    (0, 0, False, "blocked"),  # loads that all take the same
])  # fmt: skip
def test_the_channel_is_the_sets_that_both_load_through(core: int, shift: int, timing: bool, expected: str) -> None:
    def listen(target):
        yield (VmPreempt("victim", 0), VmRun("victim", 0, core))
        value, other = (replace(page, spa=page.spa + shift) for page in (target.victim.value, target.victim.other))
        yield from time_two_sets(replace(target, victim=replace(target.victim, value=value, other=other)))

    platform = Platform(cache_timing=timing)
    setting = Setting(Column.SEV_SNP, "Milan", platform, victim="chooser", tenant_spins=True)
    assert judge(*act_out(setting, listen)).outcome == expected
