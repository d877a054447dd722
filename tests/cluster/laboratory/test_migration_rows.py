"""Rows 55 to 60, whose guests move: what alone stops each, and that a move which nobody attacks loses nothing.

What is expected to flip is reasoned from what each mechanism checks (SEV API, chapters 3 and 6; SNP firmware ABI,
SNP_PAGE_SWAP_IN and the messages of migration agents), not from runs.
"""

from dataclasses import replace

import pytest

from cluster.laboratory.migration_rows import MIGRATION_ROWS
from cluster.laboratory.protection import PROTECTIONS, Column
from cluster.laboratory.rows import verdicts
from cluster.laboratory.scene import Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.generation import CAPABILITIES
from node.guest import GuestState
from node.operations import HostRead
from node.platform import Platform, Protection
from psp.legacy_guest import LegacyGuestState
from psp.policy import SnpPolicy
from psp.status import Status
from workloads.attacks import fake_target, migration
from workloads.attacks.move_operations import GoOnHere, LayThere, RunThere, TakeOut
from workloads.attacks.stream import opened, page_of, with_page
from workloads.attacks.swapped_page import SwappedPage
from workloads.attacks.target import LET_IT_RUN

HELD = {"55": "detected", "56": "detected", "57": "blocked", "59": "blocked"}
"""Rows that an SNP guest with everything at work withstands."""
FLIPS = {
    # Nothing else knows which page came, nor how old it is; an entry that was spent is spent all the same.
    Protection.SWAP_TAG: {"56": "corrupted"},
    # The tag fits: the page is the one that once was out with this entry.
    Protection.SWAP_ENTRY: {"59": "corrupted"},
    # The context stays, and with it key, ASID and what is needed to have the pages in again.
    Protection.EXPORT_DECOMMISSIONS: {"57": "corrupted"},
}


def outcomes(row, column, product, **settings):
    return {one.outcome.value for one in verdicts(row, Setting(column, product, **settings))}


def without(protection):
    return Platform(disabled=frozenset({protection}))


@pytest.mark.parametrize("protection", FLIPS)
def test_exactly_what_a_mechanism_stops_comes_to_pass_without_it(protection):
    flips = FLIPS[protection]
    found = {row: outcomes(row, Column.SEV_SNP, "Milan", platform=without(protection)) for row in HELD}
    assert found == {row: {flips.get(row, held)} for row, held in HELD.items()}
    for row, outcome in flips.items():
        assert outcomes(row, Column.SEV_TIO, "Turin", platform=without(protection)) == {outcome}


@pytest.mark.parametrize("column", [Column.SEV, Column.SEV_ES])
def test_no_guest_of_sev_goes_to_a_platform_that_amd_never_made_unless_its_firmware_does_not_look(column):
    assert outcomes("55", column, "Genoa") == {"blocked"}
    assert outcomes("55", column, "Genoa", platform=without(Protection.TARGET_CHAIN)) == {"leaked"}


def test_a_guest_that_asks_for_no_platform_of_amd_s_goes_to_any():
    setting = Setting(Column.SEV, "Genoa", moves=True)
    assert judge(*act_out(setting, fake_target.move_to_fake)).outcome is Outcome.LEAKED


@pytest.mark.parametrize("row", ["55", "56", "57", "58"])
def test_caches_that_no_domain_shares_change_nothing_of_a_move(row):
    expected = "leaked" if row == "55" else "corrupted"
    assert outcomes(row, Column.SEV, "Rome", platform=Platform(caches=True)) == {expected}


@pytest.mark.parametrize("column", Column)
def test_a_move_that_nobody_attacks_loses_nothing(column):
    product = "Turin" if column is Column.SEV_TIO else "Milan"
    setting = Setting(column, product, moves=True, open_without_key=True)
    ledger, transcript = Ledger(), Transcript()
    scene, there = Scene(setting, ledger, transcript), []

    def move(target):
        yield LET_IT_RUN
        session = yield from migration.agree()
        stream = yield from migration.take_out()
        yield from migration.come_up(session, stream)
        yield (RunThere(),)
        there.append(len(stream))

    scene.play(move)
    assert there[0] > 0
    arrived = scene.moves.there.guests["victim"]
    assert (arrived.state, arrived.faults, arrived.vcpus[0].registers.r13) == (GuestState.RUNNING, 0, 3)
    assert scene.host.guests["victim"].state is GuestState.PAUSED
    verdict = judge(ledger, transcript)
    assert verdict.outcome is Outcome.BLOCKED, verdict


@pytest.mark.parametrize("column", [Column.PLAIN, Column.SEV, Column.SEV_ES, Column.SEV_SNP])
def test_two_pages_that_change_places_are_neither_doubled_nor_changed(column):
    """Row 56 is about their order alone: a page that was there twice, or was another, would be another attack."""
    scene = Scene(Setting(column, "Milan", moves=True, open_without_key=True), Ledger(), Transcript())
    streams = []

    def watched(target):
        attack, answers = migration.permute(target), None
        while True:
            try:
                batch = attack.send(answers)
            except StopIteration:
                return
            streams.extend(one.stream for one in batch if isinstance(one, LayThere))
            answers = yield batch
            streams.extend(said for one, said in zip(batch, answers, strict=False) if isinstance(one, TakeOut))

    scene.play(watched)
    victim = scene.target.victim
    before, after = (opened(victim, one) for one in streams)
    first, second = victim.value.gpa, victim.other.gpa
    assert page_of(before, first) != page_of(before, second)
    assert (page_of(after, first), page_of(after, second)) == (page_of(before, second), page_of(before, first))
    back = with_page(with_page(after, first, page_of(after, second)), second, page_of(after, first))
    assert back == before


def test_a_source_runs_on_although_its_firmware_has_finished_sending():
    """SEND_FINISH takes no key away: that is what row 57 is about."""
    scene = Scene(Setting(Column.SEV, "Genoa", moves=True, open_without_key=True), Ledger(), Transcript())
    scene.play(migration.run_on)
    states = {one.asid: one.state for one in scene.host.board.psp.legacy.guests.values()}
    assert states[scene.target.victim.asid] is LegacyGuestState.SENT


def test_a_source_whose_guest_was_exported_has_nothing_to_go_on_with():
    scene, said = Scene(Setting(Column.SEV_SNP, "Milan", moves=True), Ledger(), Transcript()), []

    def attack(target):
        yield from migration.agree()
        stream = yield from migration.take_out()
        said.extend((yield (GoOnHere(stream),)))
        yield LET_IT_RUN

    scene.play(attack)
    assert said == [b"SNP_PAGE_SWAP_IN: INVALID_GUEST"]
    victim = scene.host.guests["victim"]
    assert (victim.state, victim.vcpus[0].registers.r13) == (GuestState.PAUSED, 0)


def test_an_older_page_fits_neither_its_own_entry_nor_the_newer_ones():
    scene = Scene(Setting(Column.SEV_SNP, "Milan"), Ledger(), Transcript())
    statuses = []

    def attack(target):
        swapped = SwappedPage.of(target, target.victim.value)
        yield from swapped.begin()
        older = yield from swapped.out(0)
        yield from swapped.back(0, older)
        yield LET_IT_RUN
        newest = yield from swapped.out(1)
        for entry, page in ((0, older), (1, older), (1, newest)):
            asking = swapped.back(entry, page)
            answers = None
            while True:
                try:
                    batch = asking.send(answers)
                except StopIteration:
                    break
                answers = yield batch
                statuses.extend(one.status for one in answers if hasattr(one, "status"))

    scene.play(attack)
    assert statuses == [Status.INVALID_MDATA_ENTRY, Status.BAD_MEASUREMENT, Status.SUCCESS, Status.SUCCESS]
    assert scene.host.guests["victim"].faults == 0


def test_a_guest_whose_pages_nobody_may_swap_is_not_rolled_back_by_a_move_but_its_disk_is():
    setting = Setting(Column.SEV_SNP, "Milan", snp_policy=SnpPolicy.PAGE_SWAP_DISABLE)
    assert [one.outcome for one in verdicts("60", setting)] == [Outcome.BLOCKED, Outcome.CORRUPTED]


def test_what_is_laid_where_no_place_was_kept_is_refused_and_nothing_runs():
    scene, said = Scene(Setting(Column.SEV, "Milan", moves=True), Ledger(), Transcript()), []

    def attack(target):
        session = yield from migration.agree()
        stream = yield from migration.take_out()
        yield from migration.come_up(session, stream)
        said.extend((yield (LayThere(stream),)))
        yield (HostRead(target.spare[0], 16),)

    scene.play(attack)
    assert said == [b"nothing left, or no place was kept"]


def test_every_row_that_moves_a_guest_keeps_its_secret_only_where_it_has_a_key():
    for row in (one for one in MIGRATION_ROWS.values() if one.open_without_key):
        for column in (Column.PLAIN, Column.SEV):
            ledger = Ledger()
            Scene(replace(Setting(column, "Milan"), moves=row.moves, open_without_key=True), ledger, Transcript())
            names = [one.name for one in ledger.secrets("victim")]
            assert ("the secret" in names) == CAPABILITIES[PROTECTIONS[column].launched].key_per_vm
