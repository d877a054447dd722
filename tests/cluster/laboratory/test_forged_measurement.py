"""Row 35b turns on the forged digest and nothing else: the owner is deceived by it, and by nothing less."""

import pytest

from cluster.laboratory.owner import IMPOSTOR, SECRET
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import GHOST_LINE, VICTIM, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Complaint, Entry, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.operations import HostRead, HostWrite
from node.platform import Platform
from psp.guest_context import MEASUREMENT_BYTES, MEASUREMENT_OFFSET
from workloads.attacks.forged_measurement import ATTACKERS_CODE, VICTIMS_CODE, through_ghost
from workloads.attacks.owner_operations import AskOwner
from workloads.attacks.small_guest import SmallGuest
from workloads.attacks.target import WRITE_BACK

MILAN = Setting(Column.SEV_SNP, "Milan", Platform(ghost_line=GHOST_LINE))


def launched_and_asks(code):
    def attack(target):
        guest = SmallGuest.of(target)
        yield from guest.launch(code)
        yield from guest.finish()
        yield (AskOwner(guest.context, guest.code, guest.secrets),)

    return attack


def askers(transcript):
    return [one.actor.name for one in transcript.entries if isinstance(one, Entry) and one.answer == SECRET]


def complaints(transcript):
    return [one.reason for one in transcript.entries if isinstance(one, Complaint)]


def test_the_owner_sends_its_secret_to_its_own_code_and_nobody_else_learns_it():
    ledger, transcript = act_out(MILAN, launched_and_asks(VICTIMS_CODE))
    assert askers(transcript) == [VICTIM]
    assert judge(ledger, transcript).outcome is Outcome.BLOCKED


def test_another_image_without_forgery_convinces_nobody():
    ledger, transcript = act_out(MILAN, launched_and_asks(ATTACKERS_CODE))
    assert askers(transcript) == []
    assert complaints(transcript) == ["report: another measurement than expected"]
    assert judge(ledger, transcript).outcome is Outcome.DETECTED


def test_the_forgery_hands_the_secret_to_the_impostor():
    ledger, transcript = act_out(MILAN, through_ghost)
    assert askers(transcript) == [IMPOSTOR]
    assert judge(ledger, transcript).outcome is Outcome.LEAKED


def test_a_report_is_of_the_guest_that_asks_for_it():
    def borrow(target):
        guest = SmallGuest.of(target)
        yield from guest.launch(VICTIMS_CODE)
        yield from guest.finish()
        # Code elsewhere names the context, but has another message key.
        yield (AskOwner(guest.context, guest.secrets, guest.code),)

    _, transcript = act_out(MILAN, borrow)
    assert askers(transcript) == []
    assert complaints(transcript) == ["no report: the guest's message key is not the context's"]


@pytest.mark.parametrize("tweaked", [True, False])
def test_ciphertext_of_another_page_forges_only_where_the_address_does_not_go_in(tweaked):
    def from_the_victim(target):
        guest = SmallGuest.of(target)
        yield WRITE_BACK
        there, here = (page | target.ghost_line for page in (target.victim.gctx, guest.context))
        (stolen,) = yield (HostRead(there + MEASUREMENT_OFFSET, MEASUREMENT_BYTES),)
        yield from guest.launch(ATTACKERS_CODE)
        yield WRITE_BACK
        yield (HostWrite(here + MEASUREMENT_OFFSET, stolen),)
        yield WRITE_BACK
        yield from guest.finish()
        digests.append(host.board.psp.launch_record(guest.context).digest)

    digests = []
    setting = Setting(Column.SEV_SNP, "Milan", Platform(ghost_line=GHOST_LINE, context_tweaked=tweaked))
    scene = Scene(setting, Ledger(), Transcript())
    host = scene.host
    victims = bytes.fromhex(host.guests[VICTIM].launch_digest)
    scene.play(from_the_victim)
    assert (digests == [victims]) is not tweaked
