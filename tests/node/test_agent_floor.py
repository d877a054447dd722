"""What a relying party that believes migration agents makes of guests that came from elsewhere."""

from dataclasses import replace
from functools import partial

import pytest
import test_handler_with_agent as handler
from test_agent_transfer import QUICK, UNITS, WITH_AGENT, agree, hosts, move, older, started
from test_departures_and_arrivals import stopped
from test_handler_transfer import IN_THE_MIDDLE
from test_handler_transfer import QUICK as HANDLERS
from test_sealed_transfer import laid
from toy_guests import SECOND, make_host, run

from cluster.agent_certificates import agent_certified, own_chain
from cluster.firmware_updates import update_image
from cluster.root_keys import product_root
from node import operations as op
from node.agent_core import carried
from node.agent_messages import Carry, Hello, floor_data, floor_of, tcb_floor
from node.agent_transfer import AGENT, greet, order_agent, own_report
from node.hypervisor_port import LaunchRefused
from node.laboratory_roots import LABORATORY_ROOTS
from node.platform import Platform
from node.product import PRODUCTS
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.product_root import RootName
from psp.report_messages import ReportRequest, ReportResponse
from psp.verifier import LINES, Evidence, Rejected, verify
from psp.verifier.certificate import parse_certificate
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report
from workloads.parameters import WorkloadParameterError
from workloads.relying_party import RelyingParameters

OLD, NEW = (1, 52, 4), (1, 55, 29)
_LAUNCH_TCB = slice(0x1F0, 0x1F8)
"""In a report."""


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


def make_up(host, name, **claims):
    """Whoever has the keys of a chip under some firmware is that firmware, and says of a guest whatever he likes."""
    pages, gctx = host.board.psp.snp.guests.pages, host.hypervisor.launched(name).gctx
    pages.write(gctx, replace(pages.read(gctx), **claims))


@pytest.mark.parametrize("demand", ["min_tcb", "pinned_tcb"])
@pytest.mark.parametrize("bounds", [True, False])
def test_forged_old_firmware_gives_no_guest_a_launch_under_newer_where_agents_have_no_floor(bounds, demand):
    here, _ = hosts()
    before = make_host(name="before", platform=older(here), costs=QUICK)
    started(before, "vm", "ledger", units=UNITS)
    run(before, 2_000_000)
    make_up(before, "vm", launch_tcb=here.board.psp.firmware.current.tcb)
    if not bounds:
        here.tasks.at_once(greet(here.hypervisor))
        here.board.agents.agents[AGENT].bounds_launch = False
    move(before, here, "vm")
    shown = evidence_of(here, "vm")
    wants = party(shown)
    wants = RelyingParameters(migration_agent="laboratory", **{demand: wants.min_tcb})
    if bounds:
        with pytest.raises(Rejected, match="LAUNCH_TCB_LOW"):
            believed(shown, wants)
        # What it says of the rest is no better than the old firmware that says it.
        assert shown.report[_LAUNCH_TCB] == before.board.psp.firmware.current.tcb.to_bytes(8, "little")
    else:
        assert believed(shown, wants).report.report_id_ma != bytes([0xFF]) * 32


def test_nor_does_it_to_one_that_its_handler_moves():
    here = make_host(name="here", platform=WITH_AGENT, costs=HANDLERS)
    before = make_host(name="before", platform=older(here), costs=HANDLERS)
    handler.begun(before)
    run(before, IN_THE_MIDDLE)
    handler.agree(before, here)
    make_up(before, "vm", launch_tcb=here.board.psp.firmware.current.tcb)
    assert laid(here, "vm", stopped(before, "vm")) is None
    assert handler.context(here).launch_tcb == before.board.psp.firmware.current.tcb


def test_a_guest_that_stays_after_all_keeps_the_launch_that_it_had():
    here, there = hosts()
    started(here, "vm", "ledger", units=UNITS)
    run(here, 2_000_000)
    tcb = here.board.psp.firmware.current.tcb
    agree(here, there, "vm")
    stopped(here, "vm")
    here.departures.cancel("vm")
    run(here, here.now_ns + SECOND)
    assert evidence_of(here, "vm").report[_LAUNCH_TCB] == tcb.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("floor", "more", "expected"),
    [
        ("snp=24,microcode=218", {"min_tcb": "microcode=219"}, "no level below that of min_tcb"),
        ("snp=24", {"min_tcb": "microcode=219"}, "no level below that of min_tcb"),
        ("snp=24", {"migration_agent": ""}, "none without migration_agent"),
        ("snp=256", {}, "levels such as"),
    ],
)
def test_a_floor_that_means_nothing_to_a_relying_party_is_refused(floor, more, expected):
    with pytest.raises(WorkloadParameterError, match=expected):
        RelyingParameters(**{"migration_agent": "laboratory", "migration_agent_floor": floor} | more)


def with_floor(host, **changed):
    """A host like that one, whose agent takes guests from no firmware older than that host's."""
    return replace(WITH_AGENT, migration_agent_floor=floor_data(LINES["Milan"].layout.split(tcb_of(host))), **changed)


def tcb_of(host):
    return host.board.psp.firmware.current.tcb.to_bytes(8, "little")


def greeting(host):
    return agent_certified(host.tasks.at_once(greet(host.hypervisor)), host.board.psp)


@pytest.mark.parametrize("low", [False, True])
def test_whatever_its_hypervisor_says_an_agent_meets_nobody_below_its_floor_or_with_another(low):
    usual, _ = hosts()
    lowest = with_floor(usual)
    here, there = (make_host(name=name, platform=lowest, costs=QUICK) for name in ("here", "there"))
    old = make_host(name="old", platform=replace(lowest, firmware_tcb=older(here).firmware_tcb), costs=QUICK)

    def meets(one, other):
        one.tasks.at_once(order_agent(one.hypervisor, "meet", "vm", greeting(other), low))

    meets(here, there)
    for other, why in ((old, "TCB_LOW"), (usual, "HOST_DATA_UNEXPECTED")):
        with pytest.raises(LaunchRefused, match=why):
            meets(here, other)
    with pytest.raises(LaunchRefused, match="HOST_DATA_UNEXPECTED"):
        meets(usual, here)


def test_an_agent_that_was_launched_under_firmware_below_the_floor_is_met_only_when_it_begins_anew():
    """Its host's firmware was replaced under it since, so that its report is of that: who launched it did so before."""
    new = LINES["Milan"].layout.split(tcb_of(make_host(platform=Platform(firmware_api=NEW))))
    platform = replace(WITH_AGENT, firmware_api=OLD, migration_agent_floor=floor_data({"snp": new["snp"]}))
    here, there = (make_host(name=name, platform=platform, costs=QUICK) for name in ("here", "there"))
    for host in (here, there):
        host.firmware.update(update_image(PRODUCTS["Milan"], ".".join(map(str, NEW))), commit=True)
        run(host, SECOND)
    here.restart_agent()
    run(here, 2 * SECOND)
    shown = [parse_report(host.tasks.at_once(own_report(host.hypervisor)), Trail()) for host in (here, there)]
    assert shown[0].reported_tcb == shown[1].reported_tcb
    for low in (False, True):
        with pytest.raises(LaunchRefused, match="LAUNCH_TCB_LOW"):
            here.tasks.at_once(order_agent(here.hypervisor, "meet", "vm", greeting(there), low))
    there.restart_agent()
    run(there, 2 * SECOND)
    here.tasks.at_once(order_agent(here.hypervisor, "meet", "vm", greeting(there), False))


def test_an_agent_that_begins_anew_has_the_floor_that_it_had():
    usual, _ = hosts()
    here = make_host(platform=with_floor(usual))
    before = parse_report(here.tasks.at_once(own_report(here.hypervisor)), Trail())
    here.restart_agent()
    run(here, SECOND)
    after = parse_report(here.tasks.at_once(own_report(here.hypervisor)), Trail())
    assert after.report_id != before.report_id
    assert after.host_data == before.host_data == here.spec.platform.migration_agent_floor
    assert floor_of(after.host_data) == {name: level for name, level in tcb_floor(before).items() if level}


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
    shown = Hello.parse(greeting(there))
    order = partial(order_agent, here.hypervisor, "meet", "vm")
    here.tasks.at_once(order(shown.pack(), True))
    *chain, own = shown.certificates
    for low in (False, True):
        with pytest.raises(LaunchRefused, match=why):
            here.tasks.at_once(order(replace(shown, certificates=(*chain, *lists(own))).pack(), low))
