"""Owners give their secret to their own guests, and chips give up to attackers what others have been seen to give."""

from dataclasses import replace

import pytest

from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.owner_secret import SECRET
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import VICTIM, Setting, act_out
from cluster.oracle.transcript import Complaint, Entry
from cluster.oracle.verdict import Outcome, judge
from node.firmware_levels import firmware_level
from node.operations import HostRead, HostWrite
from node.product import PRODUCTS
from psp.system_bus import PAGE_BYTES
from workloads.attacks import extracted_keys, old_firmware
from workloads.attacks.asking_guest import AskingGuest
from workloads.attacks.chip_operations import ExtractKeys
from workloads.attacks.elsewhere import Elsewhere
from workloads.attacks.forged_report import learn_platform
from workloads.attacks.owner_operations import GuestAsks
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.wrong_launch import small_guest_digest

MILAN = Setting(Column.SEV_SNP, "Milan")


def receivers(transcript):
    return [one.actor.name for one in transcript.entries if isinstance(one, Entry) and one.answer == SECRET]


def reasons(transcript):
    return [one.reason.split()[0] for one in transcript.entries if isinstance(one, Complaint)]


def lives_as_ordered(target):
    if target.victim.gctx:
        asking = AskingGuest.of(target)
        yield from asking.guest.launch(VICTIMS_CODE)
        yield from asking.guest.finish()
        yield from asking.ask()
    else:
        guest = SmallSevGuest.of(target)
        yield from guest.launch(VICTIMS_CODE)
        yield from guest.receive()


@pytest.mark.parametrize(
    ("column", "product"),
    [(Column.SEV, "Naples"), (Column.SEV_ES, "Genoa"), (Column.SEV_SNP, "Milan"), (Column.SEV_TIO, "Turin")],
)
def test_an_owners_own_guest_gets_the_secret_and_nobody_else(column, product):
    # Milan's keys are on the list of an owner that asks for it.
    careful = OwnerHabits(chip_id=True, crl=product != "Milan", min_api=True)
    ledger, transcript = act_out(Setting(column, product, owner=careful), lives_as_ordered)
    assert receivers(transcript) == [VICTIM]
    assert reasons(transcript) == []
    assert judge(ledger, transcript).outcome is Outcome.BLOCKED


@pytest.mark.parametrize("attack", [old_firmware.extract_keys, old_firmware.relay_request])
def test_firmware_of_today_has_no_hole(attack):
    ledger, transcript = act_out(replace(MILAN, owner=OwnerHabits(min_tcb=False)), attack)
    assert judge(ledger, transcript).outcome is Outcome.BLOCKED
    assert set(receivers(transcript)) <= {VICTIM}


def test_a_chip_that_nobody_opened_keeps_its_fuses():
    _, transcript = act_out(Setting(Column.SEV_SNP, "Genoa"), extracted_keys.forge_with_chip_key)
    assert receivers(transcript) == []
    assert reasons(transcript) == []


def test_a_key_of_old_firmware_signs_for_no_newer_one():
    def pretend(target):
        (keys,) = yield (ExtractKeys(),)
        forged = yield from learn_platform(target, old_firmware._key(keys[48:]))
        today = firmware_level("Milan", PRODUCTS["Milan"].line, PRODUCTS["Milan"].firmware_api)
        yield from replace(forged, tcb=today.tcb).take_secret(small_guest_digest(VICTIMS_CODE))

    ledger, transcript = act_out(replace(MILAN, old_firmware=True), pretend)
    assert reasons(transcript) == ["REPORT_SIGNATURE"]
    assert judge(ledger, transcript).outcome is Outcome.DETECTED


def test_a_chip_that_the_guest_never_was_on_answers_none_of_its_requests():
    def relay_to_a_stranger(target):
        asking = AskingGuest.of(target)
        guest = asking.guest
        yield from guest.launch(VICTIMS_CODE)
        yield from guest.finish()
        yield (GuestAsks(guest.code, guest.secrets, guest.asid, asking.request),)
        (request,) = yield (HostRead(asking.request, PAGE_BYTES),)
        (response,) = yield (Elsewhere(target.spare[6], request),)
        yield (HostWrite(asking.response, response),)
        yield from asking.show()

    _, transcript = act_out(MILAN, relay_to_a_stranger)
    assert receivers(transcript) == []
    assert reasons(transcript) == ["no"]  # "no report: ..."
