"""What the fixes of rows 86 to 88 and the checks of row 76 leave to somebody on the link, and to the victim."""

import pytest

from cluster.laboratory.device_rows import DEVICE_ROWS
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from node.platform import Platform, Protection
from psp.system_bus import PAGE_BYTES
from workloads.attacks import link
from workloads.attacks.depositor import LARGE_BYTES
from workloads.attacks.depositor_ways import DepositorWays
from workloads.attacks.link_taps import Delay, written_to
from workloads.attacks.slot_operations import LinkTap
from workloads.attacks.target import LET_IT_RUN

FLUSHED = Platform(ide_rekey_flush=True)


def setting(platform=Platform(), **ways):  # noqa: B008 - frozen
    cards = (OWN_CARD, OTHER_CARD)
    return Setting(
        Column.SEV_TIO, "Turin", platform, victim="depositor", cards=cards, ways=DepositorWays(**ways)
    )


def without(*names):
    return Platform(disabled=frozenset(names))


def test_with_fresh_keys_and_a_flush_the_victim_works_on_and_what_was_held_is_worth_nothing():
    scene = Scene(setting(FLUSHED, **DEVICE_ROWS["88"].ways), Ledger(), Transcript())
    scene.play(link.outlast)
    victim = scene.host.guests["victim"]
    assert (victim.state, victim.faults, victim.vcpus[0].registers.r13) == (GuestState.RUNNING, 0, 4)
    stream = scene.host.board.slots.by_port[OWN_CARD.port].root_port.port.streams[1]
    assert stream.failure is None


class Stubborn(Delay):
    """Lets go what it has held, whatever keys that is under."""

    def __call__(self, way, packet):
        if self.due and self._held and packet.header[0] == 0x60 and way.name == "UP":
            held, self._held = self._held, []
            return (*held, packet)
        return super().__call__(way, packet)


def test_who_lets_go_packets_of_old_keys_ends_the_stream_before_they_do_harm():
    def stubborn(target):
        tap = Stubborn(written_to(target.device.inbox.gpa + PAGE_BYTES, LARGE_BYTES))
        yield LET_IT_RUN
        yield LET_IT_RUN
        yield (LinkTap(target.device.port, tap, tells=False),)
        yield LET_IT_RUN
        tap.due = True
        yield LET_IT_RUN
        yield LET_IT_RUN

    ways = DEVICE_ROWS["88"].ways
    assert judge(*act_out(setting(FLUSHED, **ways), stubborn)).outcome is Outcome.DETECTED
    # The same without the fix does its harm: the tap does what it is said to.
    assert judge(*act_out(setting(**ways), stubborn)).outcome is Outcome.CORRUPTED


@pytest.mark.parametrize(
    ("attack", "off", "outcome"),
    [
        # An altered packet decrypts to other bytes, and only its MAC says so.
        (link.alter, {Protection.IDE_MAC}, Outcome.CORRUPTED),
        (link.alter, {Protection.IDE_PACKET_NUMBER}, Outcome.DETECTED),
        # One that comes again was sealed under another number.
        (link.repeat, {Protection.IDE_PACKET_NUMBER}, Outcome.CORRUPTED),
        # Without the MAC one packet more or less shifts the numbers of all that follow, which go into the cipher: the
        # fence decrypts to garbage, too, and no driver believes that.
        (link.repeat, {Protection.IDE_MAC}, Outcome.DETECTED),
        (link.drop, {Protection.IDE_MAC}, Outcome.DETECTED),
        # What follows one that is lost is taken under its own number.
        (link.drop, {Protection.IDE_PACKET_NUMBER}, Outcome.CORRUPTED),
    ],
)
def test_what_each_check_of_a_link_stops_alone(attack, off, outcome):
    found = judge(*act_out(setting(without(*off)), attack))
    assert found.outcome is outcome, found
