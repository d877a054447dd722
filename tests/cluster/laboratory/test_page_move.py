"""What the oracle of row 32 rests on: the address that firmware encrypts for. Its victim lives on unharmed."""

from __future__ import annotations

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Conclusion, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from node.operations import HostRead, HostWrite
from workloads.attacks.claims import WorkedOut
from workloads.attacks.console import ALPHABET, CELL_BYTES, CHARACTERS, cell
from workloads.attacks.page_move import guess_characters
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK

COLUMNS = (Column.SEV, Column.SEV_ES, Column.SEV_SNP)


def compare_elsewhere(target):
    """The same without a move: what is known is encrypted for another frame than the secret."""
    found = bytearray(CHARACTERS)
    for character in ALPHABET:
        yield (HostWrite(target.victim.inbox.spa, cell(character) * CHARACTERS),)
        yield WRITE_BACK
        yield LET_IT_RUN
        yield WRITE_BACK
        pages = target.victim.secret, target.victim.request
        secret, known = yield tuple(HostRead(page.spa, CHARACTERS * CELL_BYTES) for page in pages)
        for at in range(0, CHARACTERS * CELL_BYTES, CELL_BYTES):
            if secret[at : at + CELL_BYTES] == known[at : at + CELL_BYTES]:
                found[at // CELL_BYTES] = character
    yield (WorkedOut(bytes(found)),)


@pytest.mark.parametrize("column", COLUMNS)
def test_ciphertext_of_another_frame_tells_nothing(column: Column) -> None:
    found = judge(*act_out(Setting(column, "Milan", victim="console"), compare_elsewhere))
    assert found.outcome is Outcome.BLOCKED, found


@pytest.mark.parametrize("column", COLUMNS)
def test_all_that_was_typed_is_found_and_its_owner_notices_nothing(column: Column) -> None:
    ledger, transcript = Ledger(), Transcript()
    scene = Scene(Setting(column, "Milan", victim="console"), ledger, transcript)
    scene.play(guess_characters)
    (typed,) = [one.octets for one in ledger.secrets("victim") if one.name == "what was typed"]
    assert [one.octets for one in transcript.entries if isinstance(one, Conclusion)] == [typed]
    victim = scene.host.guests["victim"]
    assert (victim.state, victim.faults) == (GuestState.RUNNING, 0)
    assert victim.vcpus[0].registers.r13 == len(ALPHABET) + 2
