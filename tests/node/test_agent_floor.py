"""What a relying party that believes migration agents makes of guests that came from elsewhere."""

from dataclasses import replace
from functools import partial

import pytest
from test_agent_transfer import QUICK, UNITS, hosts, move, older, started
from toy_guests import make_host, run

from cluster.agent_certificates import agent_certified, own_chain
from cluster.root_keys import product_root
from node import operations as op
from node.agent_core import carried
from node.agent_messages import Carry, Hello, tcb_floor
from node.agent_transfer import AGENT, greet, order_agent, own_report
from node.hypervisor_port import LaunchRefused
from node.laboratory_roots import LABORATORY_ROOTS
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.product_root import RootName
from psp.report_messages import ReportRequest, ReportResponse
from psp.verifier import Evidence, Rejected, verify
from psp.verifier.certificate import parse_certificate
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report
from workloads.relying_party import RelyingParameters


def evidence_of(host, name):
    """What a guest has to show where it is now: asked with the key that it was launched with."""
    record, agent = host.hypervisor.launched(name), host.hypervisor.launched(AGENT)
    context = host.board.psp.snp.guests.pages.read(record.gctx)
    key, last = MessageKey(context.vmpck(0)), context.message_counts[0]
    asked = key.seal(0, last + 1, MessageType.REPORT_REQ, 1, ReportRequest(bytes(64)).pack())
    page = carried(host.board, op.AgentCall(name, b"", record.gctx, agent.small[0], *agent.request_pages), Carry(asked))
    report = key.unseal(MessageHeader.checked(page), page)[ReportResponse.SIZE :]
    vcek, ask, ark, crl = own_chain(host.board.psp)
    return Evidence(report, ark, ask, vcek, (crl,), agent_report=host.tasks.at_once(own_report(host.hypervisor)))


def party(evidence, **more):
    """One that wants the firmware that a report is of, and no older."""
    lowest = tcb_floor(parse_report(evidence.report, Trail()))
    words = ",".join(f"{name}={level}" for name, level in lowest.items())
    return RelyingParameters(min_tcb=words, migration_agent="laboratory", **more)


def believed(evidence, parameters):
    return verify(evidence, parameters.expected, parameters.starts_at, LABORATORY_ROOTS)


def test_a_guest_that_was_launched_under_firmware_too_old_is_not_believed_where_it_came_to():
    here, there = hosts()
    before = make_host(name="before", platform=older(here), costs=QUICK)
    for source, name in ((before, "old"), (there, "new")):
        started(source, name, "ledger", units=UNITS)
        run(source, 2_000_000)
        move(source, here, name)
    old, new = evidence_of(here, "old"), evidence_of(here, "new")
    assert believed(new, party(new)).report.report_id_ma != bytes([0xFF]) * 32
    with pytest.raises(Rejected, match="LAUNCH_TCB_LOW"):
        believed(old, party(new))


def revoked(_):
    root = product_root("Milan")
    return root.revocation_list([parse_certificate(root.certificate(RootName.ASK)).serial])


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        (lambda _: (), "CRL_MISSING"),
        (lambda _: (product_root("Milan", 1).revocation_list(),), "CRL_SIGNATURE"),
        (lambda own: (own, revoked(own)), "ASK_REVOKED"),
    ],
    ids=["no list", "a stranger's list", "a list with its issuer"],
)
def test_an_agent_meets_nobody_whose_issuer_may_have_been_revoked(lists, why):
    here, there = hosts()
    shown = Hello.parse(agent_certified(there.tasks.at_once(greet(there.hypervisor)), there.board.psp))
    order = partial(order_agent, here.hypervisor, "meet", "vm")
    here.tasks.at_once(order(shown.pack(), True))
    *chain, own = shown.certificates
    for low in (False, True):
        with pytest.raises(LaunchRefused, match=why):
            here.tasks.at_once(order(replace(shown, certificates=(*chain, *lists(own))).pack(), low))
