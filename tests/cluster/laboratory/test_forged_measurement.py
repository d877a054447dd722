"""Row 35b turns on the forged digest and nothing else: the owner is deceived by it, and by nothing less."""

import pytest

from cluster.laboratory.owner_secret import IMPOSTOR, SECRET
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import GHOST_LINE, VICTIM, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Complaint, Entry, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.operations import HostRead, HostWrite, PspCommand
from node.platform import Platform
from psp.commands import SnpCommand
from psp.guest_context import MEASUREMENT_BYTES, MEASUREMENT_OFFSET
from psp.status import Status
from workloads.attacks.asking_guest import AskingGuest
from workloads.attacks.forged_measurement import through_ghost
from workloads.attacks.owner_operations import GuestAsks
from workloads.attacks.small_codes import ATTACKERS_CODE, VICTIMS_CODE
from workloads.attacks.small_guest import SmallGuest
from workloads.attacks.target import WRITE_BACK

MILAN = Setting(Column.SEV_SNP, "Milan", Platform(ghost_line=GHOST_LINE))


def launched_and_asks(code):
    def attack(target):
        asking = AskingGuest.of(target)
        yield from asking.guest.launch(code)
        yield from asking.guest.finish()
        yield from asking.ask()

    return attack


def is_request(operation):
    return isinstance(operation, PspCommand) and operation.command == SnpCommand.GUEST_REQUEST


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
    assert [one.split()[0] for one in complaints(transcript)] == ["MEASUREMENT_UNEXPECTED"]
    assert judge(ledger, transcript).outcome is Outcome.DETECTED


def test_the_forgery_hands_the_secret_to_the_impostor():
    ledger, transcript = act_out(MILAN, through_ghost)
    assert askers(transcript) == [IMPOSTOR]
    assert judge(ledger, transcript).outcome is Outcome.LEAKED


def test_a_report_is_of_the_guest_that_asks_for_it():
    def borrow(target):
        asking = AskingGuest.of(target)
        guest = asking.guest
        yield from guest.launch(VICTIMS_CODE)
        yield from guest.finish()
        # Code elsewhere asks in the guest's name, but has another message key.
        yield (GuestAsks(guest.secrets, guest.code, guest.asid, asking.request),)
        yield from asking.carry()
        yield from asking.show()

    _, transcript = act_out(MILAN, borrow)
    assert askers(transcript) == []
    refused = [one.answer for one in transcript.entries if isinstance(one, Entry) and is_request(one.operation)]
    assert [answer.status for answer in refused] == [Status.INVALID_PARAM]


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
