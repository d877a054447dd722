"""SMT protection: a guest that asks for it does not run beside anybody on its core (SEV_FEATURES bit 15)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_guests import SECOND, guest_spec, make_host, run

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.sev_features import WITHOUT_EFFECT, features_of
from node.vmexit import ExitCode
from node.vmsa import SevFeature

SNP = Generation.SEV_SNP


def machine(*features: int):
    """Guests with these features on a Genoa, all of them out."""
    host = make_host(product="Genoa")
    for number, wanted in enumerate(features):
        host.launch(replace(guest_spec(f"vm{number}", SNP), sev_features=wanted), lambda _: None, running=True)
    run(host, SECOND // 50)
    for number in range(len(features)):
        host.board.execute_host((op.VmPreempt(f"vm{number}", 0),))
    return host


def vmrun(host, number, thread):
    (code,) = host.board.execute_host((op.VmRun(f"vm{number}", 0, thread),))
    return code


def test_vmrun_wants_the_other_thread_of_the_core_idle():
    host = machine(SevFeature.SMT_PROTECTION, 0)
    assert vmrun(host, 1, 7) == 0
    assert vmrun(host, 0, 6) == ExitCode.IDLE_REQUIRED
    for thread in (5, 8):
        assert vmrun(host, 0, thread) == 0
        host.board.execute_host((op.VmPreempt("vm0", 0),))
    host.board.execute_host((op.VmPreempt("vm1", 0),))
    assert vmrun(host, 0, 6) == 0


def test_the_same_thread_and_guests_without_it_do_not_count():
    host = machine(SevFeature.SMT_PROTECTION, 0, 0)
    assert vmrun(host, 1, 6) == 0
    assert vmrun(host, 0, 6) == 0  # who was there has exited for it
    host.board.execute_host((op.VmPreempt("vm0", 0),))
    assert [vmrun(host, number, thread) for number, thread in ((1, 6), (2, 7))] == [0, 0]


@pytest.mark.parametrize("feature", list(WITHOUT_EFFECT), ids=lambda one: one.name)
def test_no_guest_is_launched_with_a_feature_that_nothing_here_acts_by(feature):
    assert feature in features_of("Genoa")
    host = make_host(product="Genoa")
    host.launch(replace(guest_spec("vm", SNP), sev_features=int(feature)), lambda _: None, running=True)
    guest = host.guests["vm"]
    assert (guest.state, guest.reason) == (GuestState.REFUSED, f"sev_features: {feature.name} is not modelled")
