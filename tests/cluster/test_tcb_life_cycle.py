"""What an operator lives through: an update, its commit, new VCEKs, sealed keys and pinned policies that break."""

import hashlib
from functools import cache

import omne_attest
import pytest

from cluster import attested_guest
from cluster.attested_guest import Attestation, attest
from cluster.bundled_scenarios import load_scenario
from cluster.entity import Message
from cluster.firmware_updates import COMMIT
from cluster.fleet import build_fleet
from cluster.host_entity import HostEntity
from cluster.root_keys import product_root
from cluster.scenario import Scenario
from cluster.simulation import run
from node.firmware_image import laboratory_image
from psp.certificate_table import CertificateKind, packed
from psp.installed_firmware import FirmwareLevel, TcbOf
from psp.product_root import RootName
from psp.verifier import Evidence, Expectations, Reason, Rejected, root_of, verify

NOW = 1_780_000_000
PROVISIONAL, COMMITTED = "-2", "-3"
"""Tenants of each owner: the first comes before the update, the second while it is provisional."""


@pytest.fixture(scope="module")
def results():
    return run(load_scenario("tcb-life-cycle"), layout="inline")


@pytest.fixture(scope="module")
def vms(results):
    return {row["vm"]: row for row in results.tables["vms"].to_pylist()}


def works(vm):
    """Whether it got its key: a tenant that is not believed ends with code 6, one that has lost its seal with 7."""
    if vm["state"] == "running":
        assert vm["units_of_work"] > 0
        return True
    return int(vm["reason"].removeprefix("shutdown code "))


def test_an_update_alone_changes_nothing_that_anybody_sees(results, vms):
    update, _ = results.tables["firmware"].to_pylist()
    assert (update["version"], update["current_tcb"] > update["reported_tcb"]) == ("1.55.29", True)
    for owner, believed in (("floor", True), ("pinned", True), ("newest", 6)):
        assert works(vms[f"of-{owner}-1"]) == works(vms[f"of-{owner}{PROVISIONAL}"]) == believed


def test_a_commit_fulfils_a_floor_and_breaks_a_pin(vms):
    for owner, believed in (("floor", True), ("pinned", 6), ("newest", True)):
        assert works(vms[f"of-{owner}{COMMITTED}"]) == believed


def test_the_host_fetches_the_certificate_of_its_new_key(results):
    update, commit = results.tables["firmware"].to_pylist()
    assert update["vcek"] != commit["vcek"]
    (row,) = results.certificates.to_pylist()
    assert (row["asked"], row["renewed"], row["held_ns"] < update["asked_ns"]) == (2, 1, True)


def test_a_commit_ends_a_seal_to_what_is_reported_and_no_other(vms):
    seals = {"bound": 7, "remembered": True, "following": True, "free": True}
    assert {kind: works(vms[f"sealed-{kind}"]) for kind in seals} == seals
    # Twelve minutes, an opening every half of one; the one that breaks does so in the sixth.
    assert vms["sealed-bound"]["units_of_work"] == 11
    assert vms["sealed-free"]["units_of_work"] == 23


def rerun(groups, **settings):
    """Some of its groups of machines once more, on a host that is set up in another way."""
    data = load_scenario("tcb-life-cycle").model_dump(mode="json", by_alias=True, exclude_none=True)
    data["vms"] = [vm for vm in data["vms"] if vm["name"] in groups]
    data["hosts"][1] |= settings
    return {row["vm"]: row for row in run(Scenario.parse(data), layout="inline").vms.to_pylist()}


def test_by_the_other_settings_a_commit_ends_every_seal_and_nobody_is_believed_before_it():
    seals = {"sealed-following", "sealed-free"}
    found = rerun({"floor", "of-floor", *seals}, derived_keys="reported", reports_signed_for="current")
    assert [works(found[f"of-floor-{number}"]) for number in (1, 2, 3)] == [True, 6, True]
    assert {(works(found[vm]), found[vm]["units_of_work"]) for vm in seals} == {(7, 11)}


def test_a_host_that_fetched_nothing_anew_would_prove_nothing(monkeypatch):
    """The certificate that was good before the commit is none for the key that signs after it."""
    monkeypatch.setattr("node.certificate_store.CertificateStore.carried_out", lambda *_, **__: None)
    found = rerun({"newest", "of-newest"})
    assert works(found[f"of-newest{COMMITTED}"]) == 6


def test_a_host_asks_no_sooner_than_it_promised_whatever_its_firmware_is_told():
    orders = build_fleet(load_scenario("tcb-life-cycle")).orders
    entity = next(one for one in map(HostEntity, orders) if one.name == "cloud")
    firmware = entity.host.board.psp.firmware
    firmware.install(FirmwareLevel((1, 55, 29), firmware.current.tcb + (1 << 48)))
    entity.deliver(Message(10**9, "control", 1, "cloud", COMMIT, b""))
    asked = []
    while (next_ns := entity.next_event_ns()) < 2 * 10**9:
        promised_ns = entity.earliest_output_ns()
        for output in entity.advance(next_ns + 1, 1_000_000).outputs:
            assert output.kind == "fetch"
            assert output.time_ns >= promised_ns
            asked.append(output.time_ns)
            answer = Message(output.time_ns + 1_000_000, "control", 1 + len(asked), "cloud", "certificates", None)
            entity.deliver(answer)
    assert len(asked) == 2
    assert entity.host.certificates.fetch()


# Whose key signs while firmware is provisional.


@cache
def provisional(signed_at, certified, commit=False):  # kept by its values
    """A guest's evidence on a host with provisional firmware, with the certificate of a TCB version's key."""
    root = product_root("Milan")

    def table(host, _laboratory):
        firmware, chip = host.board.psp.firmware, host.board.psp.legacy.keys.chip
        firmware.install(FirmwareLevel((1, 56, 1), firmware.current.tcb + (1 << 48)))
        firmware.signed_at = signed_at
        if commit:
            firmware.commit()
        tcb = {TcbOf.REPORTED: firmware.reported_tcb, TcbOf.CURRENT: firmware.current.tcb}[certified]
        return packed({CertificateKind.VCEK: root.vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb)})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attested_guest, "_table", table)
        found = attest(Attestation("Milan", bytes(64), laboratory_image(), 3))
    ark, ask = root.certificate(RootName.ARK), root.certificate(RootName.ASK)
    return Evidence(found.report, ark, ask, found.certificates[CertificateKind.VCEK]), root_of(ark)


@pytest.mark.parametrize(
    ("signed_at", "certified", "reason"),
    [
        (TcbOf.REPORTED, TcbOf.REPORTED, None),
        (TcbOf.REPORTED, TcbOf.CURRENT, Reason.REPORTED_TCB_MISMATCH),
        # As owners of such hosts found it: no certificate proves the report, though the current one's key signed it.
        (TcbOf.CURRENT, TcbOf.REPORTED, Reason.REPORT_SIGNATURE),
        (TcbOf.CURRENT, TcbOf.CURRENT, Reason.REPORTED_TCB_MISMATCH),
    ],
)
def test_reports_of_provisional_firmware_are_signed_for_the_reported_tcb_or_by_a_switch_for_the_current_one(
    signed_at, certified, reason
):
    evidence, roots = provisional(signed_at, certified)
    if reason is None:
        assert verify(evidence, Expectations(), NOW, roots).passed
    else:
        with pytest.raises(Rejected) as rejected:
            verify(evidence, Expectations(), NOW, roots)
        assert rejected.value.reason is reason


def test_who_refuses_provisional_firmware_has_a_reason_for_it():
    evidence, roots = provisional(TcbOf.REPORTED, TcbOf.REPORTED)
    with pytest.raises(Rejected) as rejected:
        verify(evidence, Expectations(provisional_allowed=False), NOW, roots)
    assert rejected.value.reason is Reason.FIRMWARE_PROVISIONAL


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("commit", [False, True])
def test_a_stranger_s_floor_is_reached_by_a_commit_and_not_by_an_update(commit):
    evidence, _ = provisional(TcbOf.REPORTED, TcbOf.REPORTED, *((True,) if commit else ()))
    chain = evidence.leaf, evidence.ask, evidence.ark, hashlib.sha256(evidence.ark).digest()
    assert evidence.report[0x38 + 6] == 25, "it runs in both"
    omne_attest.verify(evidence.report, *chain, omne_attest.Policy(tcb_floor=omne_attest.Tcb(4, 0, 24, 219)))
    floor = omne_attest.Policy(tcb_floor=omne_attest.Tcb(4, 0, 25, 219))
    if commit:
        omne_attest.verify(evidence.report, *chain, floor)
    else:
        with pytest.raises(omne_attest.Fail) as refused:
            omne_attest.verify(evidence.report, *chain, floor)
        assert refused.value.kind is omne_attest.FailKind.TCB_BELOW_FLOOR
