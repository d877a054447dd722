"""Tenants that a relying party believes because of their migration agent move, and work on with what it gave them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from test_live_migration import group, move, play, scenario, small_image, vm_row  # noqa: F401 - the fixture

from cluster.agent_certificates import own_chain
from node import operations as op
from node.agent_core import carried
from node.agent_digest import agent_digest
from node.agent_messages import Carry
from node.agent_transfer import AGENT, own_report
from node.guest_requests import GuestRequests
from node.host import Host
from node.hypervisor import Hypervisor
from node.laboratory_roots import LABORATORY_ROOTS
from node.mac_address import mac_of
from node.program import Program
from node.tenant import Tenant
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.report_messages import ReportRequest, ReportResponse
from psp.verifier import Evidence, Expectations, Rejected, verify
from workloads.attested_start import AttestedStart
from workloads.release_messages import Kind, parse
from workloads.relying_party import RelyingParty, disk_key

QUICK = {"psp.send_update_ns_per_kib": 500.0, "psp.receive_update_ns_per_kib": 500.0}
OWN = {"name": "own", "product": "Naples", "memory": "4 GiB"}
CLOUD = {"name": "cloud", "product": "Milan", "count": 2, "memory": "4 GiB", "migration_agent": True}
OFTEN = {"instructions_per_batch": 500_000_000}
AT_VMPL_0 = {"migration_agent": "laboratory"}
FLOOR = {"migration_agent_floor": "bootloader=4,snp=24,microcode=219"}
ABOVE_SVSM = AT_VMPL_0 | {"vmpl": 2}
NOW = 1_767_225_600 + 86_400
_MOVES = {
    "by agents": ({"migration_agent": True}, AT_VMPL_0),
    "by agents, above an SVSM": ({"migration_agent": True, "svsm": True, "firmware": "auto"}, ABOVE_SVSM),
    "by its handler and agents": (
        {"migration_agent": True, "migration_handler": True, "svsm": True, "firmware": "auto"}, ABOVE_SVSM,
    ),
}  # fmt: skip


def fleet(tenant: Mapping[str, Any], party: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A relying party, and a tenant that moves after 2 s."""
    relies = group(
        "party", workload="relying-party", vcpus=1, memory="128 MiB", host="own", parameters=dict(party)
    )  # fmt: skip
    proper: dict[str, Any] = {"vcpus": 1, "memory": "64 MiB", "host": "cloud-1", "parameters": OFTEN}
    vm = group("vm", generation="SEV_SNP", attest_to="party", **proper, **tenant)
    rest = {"key_service": {"delay": "200 ms"}, "costs": QUICK, "duration": "8 s", "hosts": [OWN, CLOUD]} | changes
    return scenario(vms=[relies, vm], **({"migrations": [move(at="2 s", to="cloud-2")]} | rest))


def played(body: dict[str, Any]) -> tuple[Any, Mapping[str, Host]]:
    """Rows, and the hosts as they are at the end."""
    hosts: dict[str, Host] = {}
    _, rows = play(body, at_start=hosts.update)
    return rows, hosts


@pytest.mark.parametrize("way", _MOVES)
def test_a_tenant_that_is_believed_because_of_its_agent_moves_and_works_on_with_its_key(way: str) -> None:
    rows, hosts = played(fleet(*_MOVES[way]))
    stays, _ = played(fleet(*_MOVES[way], migrations=[], duration="2 s"))
    (one,) = rows["migrations"]
    assert (one["outcome"], one["reason"]) == ("completed", None)
    assert vm_row(rows)["host"] == "cloud-2"
    assert vm_row(rows)["faults"] == vm_row(stays)["faults"], "those of its card's registers"
    assert vm_row(rows)["units_of_work"] > vm_row(stays)["units_of_work"] > 0
    assert vm_row(rows, "party")["units_of_work"] == 1
    there, program, party = hosts["cloud-2"], program_of(hosts["cloud-2"], "vm"), program_of(hosts["own"], "party")
    assert isinstance(program, AttestedStart)
    assert isinstance(party, RelyingParty)
    record = there.hypervisor.launched("vm")
    spa = record.page_spa(program.key_gpa)
    assert spa is not None
    assert there.board.controller.read(spa, 32, record.asid) == disk_key(party.content, mac_of("vm", 0))


def program_of(host: Host, vm: str) -> Program:
    tenants = host.guests[vm].software
    assert isinstance(tenants, Tenant)
    program = tenants.programs[0]
    assert program is not None
    return program


def report_of(host: Host, vmpl: int) -> bytes:
    """What firmware says of the guest where it is now: asked with the key that it was launched with."""
    record, agent = host.hypervisor.launched("vm"), host.hypervisor.launched(AGENT)
    context = host.board.psp.snp.guests.pages.read(record.gctx)
    key, last = MessageKey(context.vmpck(vmpl)), context.message_counts[vmpl]
    asked = key.seal(vmpl, last + 1, MessageType.REPORT_REQ, 1, ReportRequest(bytes(64), vmpl).pack())
    assert agent.request_pages is not None
    page = carried(host.board, op.AgentCall("vm", b"", record.gctx, agent.small[0], *agent.request_pages), Carry(asked))
    assert isinstance(page, bytes)
    payload = key.unseal(MessageHeader.checked(page), page)
    return payload[ReportResponse.SIZE :]


@pytest.mark.parametrize("way", _MOVES)
def test_a_tenant_that_has_moved_is_believed_again_because_of_the_agent_it_is_with_now(way: str) -> None:
    rows, hosts = played(fleet(*_MOVES[way]))
    vmpl = _MOVES[way][1].get("vmpl", 0)
    here, there = hosts["cloud-1"], hosts["cloud-2"]
    report = report_of(there, vmpl)
    shown = {host: host.tasks.at_once(own_report(host.hypervisor)) for host in (here, there)}
    vcek, ask, ark, _ = own_chain(there.board.psp)
    expected = Expectations(
        measurement=bytes.fromhex(vm_row(rows)["launch_digest"]), vmpl=vmpl,
        migration_agent=Expectations(measurement=agent_digest()),
    )  # fmt: skip
    verdict = verify(Evidence(report, ark, ask, vcek, agent_report=shown[there]), expected, NOW, LABORATORY_ROOTS)
    assert verdict.report.report_id_ma != b"\xff" * 32
    with pytest.raises(Rejected, match="MIGRATION_AGENT_UNPROVED"):
        verify(Evidence(report, ark, ask, vcek, agent_report=shown[here]), expected, NOW, LABORATORY_ROOTS)


def own_report_kept_back(host: Host) -> None:
    """Whoever runs the host does not show its agent's report."""
    requests_of(host).agent_report = None


def report_of_nothing(host: Host) -> None:
    """Or something else in its place."""

    def nothing() -> Any:
        return bytes(0x4A0)
        yield

    requests_of(host).agent_report = nothing


def as_it_is(_: Host) -> None:
    """Nothing is changed."""


def requests_of(host: Host) -> GuestRequests:
    assert isinstance(host.hypervisor, Hypervisor)
    return host.hypervisor.requests


@pytest.mark.parametrize(
    ("tenant", "party", "change", "reason"),
    [
        ({"migration_agent": True}, {}, as_it_is, b"POLICY_MIGRATION"),
        ({"migration_agent": True}, {"migration_agent": "00" * 48}, as_it_is, b"MIGRATION_AGENT_UNPROVED"),
        ({"migration_agent": True}, AT_VMPL_0 | FLOOR, as_it_is, b"MIGRATION_AGENT_UNPROVED"),
        ({"migration_agent": True}, AT_VMPL_0, own_report_kept_back, b"MIGRATION_AGENT_UNPROVED"),
        ({"migration_agent": True}, AT_VMPL_0, report_of_nothing, b"MIGRATION_AGENT_UNPROVED"),
        ({"migration_agent": True}, AT_VMPL_0, Host.restart_agent, b"MIGRATION_AGENT_UNLISTED"),
        (
            {"migration_handler": True, "svsm": True, "firmware": "auto"}, ABOVE_SVSM, as_it_is,
            b"MIGRATION_AGENT_UNPROVED",
        ),
    ],
    ids=[
        "no agent is believed", "another agent is", "its agent takes guests from anywhere", "its report is missing",
        "its report is none", "its agent is no more", "it moves itself",
    ],
)  # fmt: skip
def test_a_tenant_whose_agent_is_not_the_one_expected_gets_no_key(
    tenant: dict[str, Any], party: dict[str, Any], change: Callable[[Host], None], reason: bytes
) -> None:
    said: list[bytes] = []

    def at_start(hosts: Mapping[str, Host]) -> None:
        change(hosts["cloud-1"])
        own = hosts["own"].network
        uplink = own.uplink
        assert uplink is not None

        def heard(target: bytes, frames: tuple[bytes, ...]) -> None:
            messages = [one for one in map(parse, frames) if one is not None]
            said.extend([one.data for one in messages if one.kind is Kind.REFUSED])
            uplink(target, frames)

        own.uplink = heard

    _, rows = play(fleet(tenant, party), at_start=at_start)
    assert said == [reason]
    assert vm_row(rows, "party")["units_of_work"] == 0
    assert (vm_row(rows)["units_of_work"], vm_row(rows)["reason"]) == (0, "shutdown code 6")
    assert [row["outcome"] for row in rows["migrations"]] == ["refused"]


def test_a_tenant_whose_agents_have_the_floor_that_is_expected_is_believed_and_moves() -> None:
    party = AT_VMPL_0 | FLOOR | {"min_tcb": "snp=24"}
    rows, _ = played(fleet({"migration_agent": True}, party, hosts=[OWN, CLOUD | FLOOR]))
    assert [row["outcome"] for row in rows["migrations"]] == ["completed"]
    assert vm_row(rows)["units_of_work"] > 0


def test_a_tenant_that_nobody_may_move_is_believed_as_before() -> None:
    rows, _ = played(fleet({}, AT_VMPL_0))
    assert vm_row(rows)["units_of_work"] > 0
    assert [row["reason"] for row in rows["migrations"]] == ["NEEDS_MIGRATION_AGENT"]


def test_a_tenant_that_is_asked_to_move_while_it_proves_itself_stays_until_its_card_is_at_rest() -> None:
    rows, _ = played(fleet({"migration_agent": True}, AT_VMPL_0, migrations=[
        move(at="100 ms", to="cloud-2"), move(at="3 s", to="cloud-2"),
    ]))  # fmt: skip
    assert [row["reason"] for row in rows["migrations"]] == ["NETWORK_CARD", None]
    assert vm_row(rows)["units_of_work"] > 0


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_the_digest_that_is_expected_of_an_agent_is_what_firmware_measured(product: str) -> None:
    """Milan, Genoa and Turin launch the same agent."""
    hosts: dict[str, Host] = {}
    vm = group("vm", host="cloud-1", workload="relying-party", memory="128 MiB", vcpus=1)
    play(scenario(hosts=[CLOUD | {"product": product}], vms=[vm], duration="1 ms"), at_start=hosts.update)
    host = hosts["cloud-1"]
    context = host.board.psp.snp.guests.pages.read(host.hypervisor.launched(AGENT).gctx)
    assert context.digest == agent_digest()
