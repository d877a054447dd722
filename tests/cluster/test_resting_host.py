"""A host that rests is its order; whoever looks finds what an eager launch has made."""

import random

import pytest
from small_fleet import small_fleet, vm

from cluster import host_entity
from cluster.entity import CONTROL, Message
from cluster.fleet import build_fleet
from cluster.host_entity import HostEntity, HostOrder, build_host
from cluster.resting_host import RestingHost, caught_up
from cluster.simulation import run
from node.rmp_layout import PAGE_BYTES

END_NS = 60_000_000_000
IDLE = {"workload": "idle", "start": "running", "count": 3}
HOSTS = [{"name": name, "product": "Milan", "memory": "16 GiB"} for name in ("full", "empty", "busy")]
VMS = [
    *(vm(f"{one}", generation, "idle", host="full") | IDLE for one, generation in (
        ("plain", "PLAIN"), ("sev", "SEV"), ("es", "SEV_ES"), ("snp", "SEV_SNP"))),
    vm("late", "SEV_SNP", "random-access", host="empty", arrival="5 s"),
    vm("mover", "PLAIN", "idle", host="busy") | {"workload": "idle", "start": "running"},
]  # fmt: skip
MOVES = [{"vm": "mover", "to": "full", "at": "10 s"}]


def scenario(**more):
    return small_fleet(hosts=HOSTS, vms=VMS, trace=None, duration="1 min", **more)


def orders(**more):
    return {order.spec.name: order.pack() for order in build_fleet(scenario(**more)).orders}


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(host_entity, "rests", lambda _: False)


def test_results_are_those_of_eager_hosts_also_when_a_message_wakes_one(request):
    resting = run(scenario(migrations=MOVES), layout="inline")
    request.getfixturevalue("eager")
    assert run(scenario(migrations=MOVES), layout="inline").digest == resting.digest


def test_a_host_rests_until_a_message_comes():
    assert {name: type(build_host(order)) for name, order in orders().items()} == dict.fromkeys(orders(), RestingHost)
    one = build_host(orders()["full"])
    assert not one.is_real
    assert one.next_event_ns() == one.earliest_output_ns() > END_NS
    assert one.gauges()["memory_assigned_bytes"] == 12 * (512 << 20)
    one.collect(END_NS)
    assert not one.is_real


def test_a_host_that_is_woken_speaks_of_its_letters_alone_and_opens_none_before_it_has_caught_up():
    one, eager = build_host(orders()["full"]), HostEntity(HostOrder.parse(orders()["full"]))
    at_ns = 40_000_000_000
    letters = [Message(at_ns + ns, CONTROL, number, "full", "nobody-knows") for number, ns in enumerate((5, 0, 0))]
    one.deliver(letters[0])
    assert [one.answer(letter) for letter in letters[1:]] == [(at_ns, 0, ())] * 2
    assert one.host.now_ns == 0
    assert one.collect(at_ns) == caught_up(eager, at_ns).collect(at_ns)
    assert one.host.now_ns <= at_ns


def test_a_host_with_work_is_there_at_once():
    busy = small_fleet(hosts=HOSTS, vms=[vm("a", "PLAIN", "stream", host="full", start="running")], trace=None)
    order = build_fleet(busy).orders[0].pack()
    assert type(build_host(order)) is HostEntity
    assert HostOrder.parse(order).pack() == order


def test_whoever_looks_at_a_machine_finds_what_an_eager_launch_made():
    order = orders()["full"]
    looked = caught_up(build_host(order)._made(), END_NS).host
    eager = caught_up(HostEntity(HostOrder.parse(order)), END_NS).host
    for name in random.Random(9).sample(sorted(eager.guests), 6):
        found, made = looked.guests[name], eager.guests[name]
        assert (found.launch_digest, found.launch_tcb, found.asid) == (made.launch_digest, made.launch_tcb, made.asid)
        assert [one.registers.rip for one in found.vcpus] == [one.registers.rip for one in made.vcpus]
    read, expected = ((one.board.dram, one.board.rmp) for one in (looked, eager))
    for page in random.Random(9).sample(range((16 << 30) // PAGE_BYTES), 300):
        assert read[1].entry(page * PAGE_BYTES) == expected[1].entry(page * PAGE_BYTES)
    assert read[0].resident_pages == expected[0].resident_pages


def test_an_snp_machine_of_a_host_that_rested_has_the_context_that_its_reports_are_made_of():
    order = orders()["full"]
    hosts = [caught_up(one, END_NS).host for one in (build_host(order)._made(), HostEntity(HostOrder.parse(order)))]
    contexts = [host.hypervisor.launched("snp-2").gctx for host in hosts]
    assert contexts[0] == contexts[1] != 0
    pages = [bytes(host.board.dram.read(contexts[0], PAGE_BYTES)) for host in hosts]
    assert pages[0] == pages[1] != bytes(PAGE_BYTES)
    records = [host.board.psp.launch_record(contexts[0]) for host in hosts]
    assert records[0] == records[1]
