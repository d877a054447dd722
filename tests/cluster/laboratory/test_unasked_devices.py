"""What trusted I/O must stop beside the rows of the matrix: the list at the head of the sheet on SEV-TIO."""

from contextlib import suppress
from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD, Setting, act_out
from cluster.oracle.transcript import Entry
from cluster.oracle.verdict import Outcome, judge
from node.guest_tdi import TdiRefused
from node.operations import CardUpdate, PspAnswer
from node.platform import Platform, Protection
from node.tio_carrier import TioRefused
from node.tio_host import TioHost
from psp.commands import SnpCommand
from psp.status import Status
from psp.tsm.tio_buffers import NONCE_BYTES
from tio.tdisp import LockFlags
from workloads.attacks import another_guest, claimed_registers, overheard_keys, unasked_device
from workloads.attacks.another_guest import ANY, tdi_of_tenant
from workloads.attacks.crooked_device import EVIL
from workloads.attacks.depositor import CONTENT_BYTES
from workloads.attacks.depositor_ways import DepositorWays
from workloads.attacks.slot_operations import CardRead
from workloads.attacks.target import LET_IT_RUN

LETS_GO = DepositorWays(detaches=1)
STAYS = DepositorWays()


def played(attack, ways, column=Column.SEV_TIO, platform=Platform(), card=OWN_CARD, **more):  # noqa: B008 - frozen
    setting = Setting(column, "Turin", platform, victim="depositor", cards=(card, OTHER_CARD), ways=ways, **more)
    ledger, transcript = act_out(setting, attack)
    return judge(ledger, transcript), transcript


def asked_by_cards(transcript):
    return [one.answer for one in transcript.entries if isinstance(one, Entry) and type(one.operation) is CardRead]


@pytest.mark.parametrize(
    ("attack", "ways", "outcome"),
    [
        (unasked_device.start_without_consent, LETS_GO, Outcome.DETECTED),
        (unasked_device.replay_start, LETS_GO, Outcome.DETECTED),
        (unasked_device.reach_after_unbind, LETS_GO, Outcome.DETECTED),
        (unasked_device.keep_let_go, LETS_GO, Outcome.DETECTED),
        (unasked_device.keep_moved, LETS_GO, Outcome.DETECTED),
        (unasked_device.keep_withheld, LETS_GO, Outcome.DETECTED),
        (unasked_device.read_trusted_memory, DepositorWays(wipes=0), Outcome.BLOCKED),
        (unasked_device.clear_command, STAYS, Outcome.DETECTED),
        (unasked_device.withhold_memory, STAYS, Outcome.DETECTED),
        (unasked_device.downgrade_before_run, STAYS, Outcome.DETECTED),
        (unasked_device.swap, STAYS, Outcome.DETECTED),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_guest_with_a_trusted_device_loses_nothing(attack, ways, outcome):
    # Where it goes on to take its device again, it finds it changed.
    verdict, transcript = played(attack, ways)
    assert verdict.outcome is outcome, verdict
    assert set(asked_by_cards(transcript)) <= {None}


@pytest.mark.parametrize(
    ("attack", "ways"),
    [
        (unasked_device.reach_after_unbind, LETS_GO),
        (unasked_device.read_trusted_memory, DepositorWays(wipes=0)),
        (unasked_device.swap, STAYS),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_guest_that_has_none_loses_its_secret_to_the_same(attack, ways):
    verdict, _ = played(attack, ways, Column.PLAIN)
    assert verdict.outcome is Outcome.LEAKED, verdict


def test_only_the_guests_own_entry_keeps_a_device_from_its_memory_that_was_started_without_it():
    knocked_out = Platform(disabled=frozenset({Protection.SECURE_DEVICE_ENTRY}))
    verdict, _ = played(unasked_device.start_without_consent, LETS_GO, platform=knocked_out)
    assert verdict.outcome is Outcome.LEAKED, verdict
    # Neither does anything else, where the hypervisor keeps bound what its guest refuses or lets go.
    for attack in (unasked_device.keep_let_go, unasked_device.keep_moved, unasked_device.keep_withheld):
        verdict, _ = played(attack, LETS_GO, platform=knocked_out)
        assert verdict.outcome is Outcome.LEAKED, (attack, verdict)
    # What the device is not trusted with, the entry does not keep from it; nor does a start of before start it.
    for attack in (unasked_device.reach_after_unbind, unasked_device.replay_start):
        verdict, transcript = played(attack, LETS_GO, platform=knocked_out)
        assert verdict.outcome is Outcome.DETECTED, verdict
        assert set(asked_by_cards(transcript)) == {None}


@pytest.mark.parametrize("changed", [True, False], ids=["device changed", "registers withheld"])
def test_what_a_guest_refuses_is_unbound_where_its_hypervisor_obeys(changed):
    bound = []

    def attack(target):
        given, update = target.device.given, CardUpdate(target.device.port, *EVIL)
        yield LET_IT_RUN
        yield LET_IT_RUN
        if changed:
            yield (update,)
        else:
            given.interface.function = replace(given.function, bars=())
        bound.append(given.bound)
        yield LET_IT_RUN
        bound.append(given.bound)
        yield (update,)

    # Let go at the end of its first life; refused in the second.
    assert played(attack, LETS_GO)[0].outcome is Outcome.DETECTED
    assert bound == [False, False]


def test_registers_that_were_taken_before_one_was_refused_are_given_back():
    counts = []

    def attack(target):
        given = target.device.given
        yield LET_IT_RUN
        counts.append(len(given.assigned))
        yield LET_IT_RUN
        target.device.tio.unbinds = False
        yield from unasked_device.swap_pages(target)
        counts.append(len(given.assigned))

    assert played(attack, LETS_GO)[0].outcome is Outcome.DETECTED
    assert counts[0] > 1
    assert counts[1] == 0


@pytest.mark.parametrize("refused", [False, True], ids=["pretended", "refused"])
def test_a_guest_that_takes_its_device_anew_and_refuses_it_clears_its_entry_of_before(monkeypatch, refused):
    def pretends(*_):
        yield from ()

    def refuses(*_):
        yield from ()
        raise TioRefused(SnpCommand.TIO_TDI_BIND, Status.INVALID_TDI_STATE, "no")

    def attack(target):
        device, place = target.device, target.device.tenant
        port = device.other.port.port
        load = CardRead(port, place.base_gpa, CONTENT_BYTES)
        yield from tdi_of_tenant(target).attach(ANY, bytes(NONCE_BYTES))
        yield (CardUpdate(port, *EVIL),)
        yield (load,)
        monkeypatch.setattr(TioHost, "bind", refuses if refused else pretends)
        monkeypatch.setattr(TioHost, "unbind", pretends)
        with suppress(TdiRefused):  # It is not bound, or runs already.
            yield from tdi_of_tenant(target).attach(ANY, bytes(NONCE_BYTES))
        yield (load,)

    _, transcript = played(attack, STAYS, tenant_has_card=True)
    before, after = asked_by_cards(transcript)
    assert isinstance(before, bytes)
    assert after is None


@pytest.mark.parametrize(
    ("off", "outcome"),
    [
        (set(), Outcome.BLOCKED),
        # The page's owner and address are what the RMP says: only whose the device is tells the difference.
        ({Protection.SECURE_DEVICE_ENTRY}, Outcome.CORRUPTED),
        ({Protection.IOMMU_CHECK}, Outcome.BLOCKED),
    ],
)
def test_a_device_that_another_guest_trusts_reaches_its_own_guests_pages_alone(off, outcome):
    platform = Platform(disabled=frozenset(off))
    verdict, _ = played(another_guest.store_to_private_memory, STAYS, platform=platform, tenant_has_card=True)
    assert verdict.outcome is outcome, verdict


MMIO = Protection.MMIO_VALIDATION, Protection.MMIO_ROUTE, Protection.MMIO_GIVEN_BACK
STORES = DepositorWays(stores=1)
KEPT = DepositorWays(wipes=0)
"""A guest whose secret stays on its device."""


@pytest.mark.parametrize(
    ("attack", "ways", "alone", "stopped", "opened"),
    [
        # A page that is another's faults for the victim; of a validation that is refused nobody has anything.
        (claimed_registers.by_validation, KEPT, Protection.MMIO_VALIDATION, Outcome.BLOCKED, Outcome.LEAKED),
        (claimed_registers.by_address, KEPT, Protection.MMIO_ROUTE, Outcome.DETECTED, Outcome.LEAKED),
        (claimed_registers.behind_another_port, STAYS, Protection.MMIO_ROUTE, Outcome.DETECTED, Outcome.CORRUPTED),
        (claimed_registers.taken_over, STORES, Protection.MMIO_GIVEN_BACK, Outcome.DETECTED, Outcome.LEAKED),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_pages_of_a_device_are_a_guests_only_where_firmware_finds_them_behind_its_own_device(
    attack, ways, alone, stopped, opened
):
    for off in ({alone}, set(MMIO) - {alone}):
        platform = Platform(disabled=frozenset(off))
        verdict, _ = played(attack, ways, platform=platform, tenant_has_card=True)
        assert verdict.outcome is (opened if alone in off else stopped), (off, verdict)


@pytest.mark.parametrize(
    ("encrypts", "off", "outcome"),
    [
        (True, set(), Outcome.BLOCKED),
        (True, {Protection.SESSION_ENCRYPTION}, Outcome.BLOCKED),
        (False, set(), Outcome.DETECTED),
        (False, {Protection.SESSION_ENCRYPTION}, Outcome.LEAKED),
    ],
)
def test_keys_of_a_link_are_overheard_where_nobody_wants_the_session_encrypted_and_the_device_does_not(
    encrypts, off, outcome
):
    platform = Platform(disabled=frozenset(off))
    card = replace(OWN_CARD, encrypts=encrypts)
    verdict, _ = played(overheard_keys.overhear_keys, STAYS, platform=platform, card=card)
    assert verdict.outcome is outcome, verdict


NO_UPDATE = int(LockFlags.NO_FW_UPDATE)
"""A guest that wants its device to stay what it was when it was proved."""


@pytest.mark.parametrize(
    ("ways", "outcome"),
    [
        # Firmware's digest gives the old report away, and what it says of the lock the new one: each is enough.
        (DepositorWays(lock_flags=NO_UPDATE), Outcome.DETECTED),
        (DepositorWays(lock_flags=NO_UPDATE, checks_lock=0), Outcome.DETECTED),
        (DepositorWays(lock_flags=NO_UPDATE, checks_report=0), Outcome.DETECTED),
        (DepositorWays(lock_flags=NO_UPDATE, checks_lock=0, checks_report=0), Outcome.LEAKED),
        # Who never cared whether it is updated finds the replay all the same, by the digest alone.
        (DepositorWays(), Outcome.DETECTED),
        (DepositorWays(checks_report=0), Outcome.LEAKED),
    ],
    ids=["both", "digest", "lock", "neither", "unlocked", "unlocked, no digest"],
)
def test_a_report_of_another_lock_is_believed_by_who_compares_neither_it_nor_the_lock_with_what_firmware_says(
    ways, outcome
):
    verdict, _ = played(unasked_device.replay_report, ways)
    assert verdict.outcome is outcome, verdict


def test_a_report_of_the_present_lock_is_believed_and_the_update_breaks_that(monkeypatch):
    # The same without the replay, and with the lock that the guest wants: it is the lock that keeps the secret.
    monkeypatch.setattr(unasked_device, "LockFlags", lambda _: LockFlags.NO_FW_UPDATE)
    ways = DepositorWays(lock_flags=NO_UPDATE, checks_lock=0, checks_report=0)
    verdict, _ = played(unasked_device.replay_report, ways)
    assert verdict.outcome is Outcome.DETECTED, verdict


def test_a_device_that_was_changed_between_lock_and_start_does_not_start():
    _, transcript = played(unasked_device.downgrade_before_run, STAYS)
    seen = [one for one in transcript.entries if isinstance(one, Entry)]
    changed = next(at for at, one in enumerate(seen) if isinstance(one.operation, CardUpdate))
    told = [one.answer.status for one in seen[changed:] if isinstance(one.answer, PspAnswer)]
    # The first that is asked afterwards is the device, with the nonce of the lock.
    assert told[:2] == [Status.SPDM_REQUEST, Status.SPDM_ERROR]


def test_what_a_crooked_card_asks_for_is_asked():
    _, transcript = played(unasked_device.reach_after_unbind, LETS_GO, Column.PLAIN)
    (found,) = asked_by_cards(transcript)
    assert isinstance(found, bytes)
