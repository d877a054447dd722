"""Launches of each generation, refusals that give all back, digests, ASIDs and the security processor's queue."""

import dataclasses

import pytest
from sevsnpmeasure import guest as reference
from toy_guests import COSTS, GENERATIONS, IMAGE, MIB, SECOND, guest_spec, make_host, run, start

from node import operations as op
from node.cpu_model import VCPU_MODEL
from node.firmware_image import find_firmware_image, firmware_image
from node.generation import Generation
from node.guest import GuestState
from node.host import Host
from node.hypervisor import COMMANDS_AT_ONCE
from node.vcpu_model import vcpu_model
from psp.commands import LegacyCommand, SnpCommand


def holdings(host: Host) -> dict[str, object]:
    """Everything of the machine that a VM could still hold."""
    board, hypervisor = host.board, host.hypervisor
    return {
        "frames": hypervisor.frames.used_bytes,
        "resident": board.dram.resident_pages,
        "rmp": 0 if board.rmp is None else len(board.rmp),
        "asids": [hypervisor.asids.in_use(one) for one in (Generation.SEV, Generation.SEV_SNP)],
        "keys": [asid for asid in range(1, host.spec.product.max_asid + 1) if board.controller.has_key(asid)],
        "contexts": (len(board.psp.snp.guests.pages.spas), len(board.psp.legacy.guests)),
        "control blocks": (dict(board.vmcbs), dict(board.nested), dict(board.disks)),
        "records": (dict(hypervisor._vms), dict(hypervisor.places)),
    }  # fmt: skip


def settled_host(**kwargs) -> Host:
    """A host whose command page holds its last command already, as it will again."""
    host = make_host(**kwargs)
    for number, generation in enumerate(GENERATIONS):
        if generation in host.spec.product.generations:
            start(host, f"first{number}", generation)
            host.destroy(f"first{number}")
    run(host)
    return host


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_destroy_returns_every_frame_asid_entry_key_and_byte(generation, product):
    host = settled_host(product=product, min_sev_asid=50)
    before = holdings(host)
    for number in range(4):
        start(host, f"vm{number}", generation, "ledger", vcpus=2, units=5)
    run(host, 50 * SECOND)
    for number in (2, 0, 3, 1):
        host.destroy(f"vm{number}")
    run(host)
    assert {one.state for one in host.guests.values()} == {GuestState.DESTROYED}
    assert holdings(host) == before


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_vm_destroyed_while_it_launches_goes_when_it_has_come(generation):
    host = settled_host()
    before, told = holdings(host), []
    host.launch(guest_spec("vm", generation), lambda guest: told.append(guest.state))
    host.clock.env.step()
    host.destroy("vm")
    host.destroy("vm")
    assert host.guests["vm"].state is GuestState.LAUNCHING
    run(host)
    assert host.guests["vm"].state is GuestState.DESTROYED
    assert told in ([GuestState.DESTROYED], [GuestState.RUNNING])
    assert holdings(host) == before


REFUSALS = [
    ("Milan", Generation.SEV_SNP, {"memory_bytes": 1 << 40}, "memory: "),
    ("Milan", Generation.SEV, {"memory_bytes": 1 << 40}, "memory: "),
    ("Milan", Generation.PLAIN, {"memory_bytes": 1 << 40}, "memory: "),
    ("Naples", Generation.SEV_SNP, {}, "generation: Naples has no SEV_SNP"),
    ("Rome", Generation.SEV_SNP, {}, "generation: Rome has no SEV_SNP"),
    ("Turin", Generation.SEV_TIO, {"memory_bytes": 1 << 40}, "memory: "),
    ("Milan", Generation.SEV_TIO, {}, "generation: Milan has no SEV_TIO"),
    ("Milan", Generation.SME, {}, "generation: SME needs a host"),
]


@pytest.mark.parametrize(("product", "generation", "changes", "reason"), REFUSALS)
@pytest.mark.parametrize("running", [True, False])
def test_a_refused_launch_gives_everything_back_and_says_why(product, generation, changes, reason, running):
    host = settled_host(product=product, min_sev_asid=5)
    before, told = holdings(host), []
    host.launch(guest_spec("vm", generation, **changes), told.append, running=running)
    run(host)
    (guest,) = told
    assert guest.state is GuestState.REFUSED
    assert guest.reason.startswith(reason)
    assert holdings(host) == before
    assert not host.tasks.promises


@pytest.mark.parametrize(("generation", "room"), [(Generation.SEV, 2), (Generation.SEV_SNP, 3)])
def test_a_launch_without_a_free_asid_is_refused(generation, room):
    product = dataclasses.replace(make_host().spec.product)
    host = make_host(min_sev_asid=4 if generation is Generation.SEV_SNP else product.max_asid - 1)
    for number in range(room):
        assert start(host, f"vm{number}", generation).state is GuestState.RUNNING
    used = host.hypervisor.frames.used_bytes
    late = start(host, "late", generation)
    assert late.state is GuestState.REFUSED
    assert late.reason == f"ASID: all {room} of the host for {generation.name} are in use"
    assert host.hypervisor.frames.used_bytes == used
    host.destroy("vm0")
    run(host)
    assert start(host, "again", generation).state is GuestState.RUNNING


def test_a_firmware_without_snp_metadata_refuses_snp_launches_and_keeps_nothing():
    bare = firmware_image(IMAGE.data, "bare")
    bare = dataclasses.replace(bare, tables=dataclasses.replace(bare.tables, sections=()))
    host = settled_host(image=IMAGE)
    host.hypervisor._images = {"auto": bare}
    before = holdings(host)
    guest = start(host, "vm", Generation.SEV_SNP)
    assert guest.state is GuestState.REFUSED
    assert "SEV metadata" in guest.reason
    assert holdings(host) == before


def test_one_asid_serves_many_guests_each_after_a_flush_and_with_another_key():
    host = make_host(min_sev_asid=2)
    board, order = host.board, []
    real = board.execute_host

    def watched(batch):
        for one in batch:
            if type(one) is op.Wbinvd:
                order.append("wbinvd")
            elif type(one) is op.PspCommand and one.command in (SnpCommand.DF_FLUSH, SnpCommand.ACTIVATE):
                order.append(SnpCommand(one.command).name)
        return real(batch)

    board.execute_host = watched
    pages = set()
    for number in range(4):
        guest = start(host, f"vm{number}", Generation.SEV_SNP)
        assert (guest.state, guest.asid) == (GuestState.RUNNING, 1)
        board.controller.write(64 * MIB, bytes(16), 1)
        pages.add(board.dram.read(64 * MIB, 16))
        host.destroy(f"vm{number}")
        run(host)
    assert order == ["ACTIVATE", *["wbinvd", "DF_FLUSH", "ACTIVATE"] * 3]
    assert len(pages) == 4


def test_a_vm_taken_down_in_the_middle_of_anothers_flush_does_not_spoil_it():
    for delay in range(0, 4_000_000, 200_000):
        host = make_host(min_sev_asid=3)
        for number in range(2):
            start(host, f"vm{number}", Generation.SEV_SNP)
        host.destroy("vm0")
        run(host)
        now = host.now_ns
        host.launch(guest_spec("new", Generation.SEV_SNP), lambda _: None)
        host.clock.env.run(until=now + 1 + delay)
        host.destroy("vm1")
        run(host)
        assert host.guests["new"].state is GuestState.RUNNING, host.guests["new"].reason


def image_on_disk(tmp_path):
    image = find_firmware_image()
    path = tmp_path / "firmware.fd"
    path.write_bytes(image.data)
    return image, str(path)


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize("kind", ["found", "laboratory"])
def test_launched_guests_have_the_digests_that_sev_snp_measure_prints(vcpus, kind, tmp_path):
    image, path = image_on_disk(tmp_path)
    if kind == "laboratory":
        image = IMAGE
        (tmp_path / "firmware.fd").write_bytes(image.data)
    host = make_host(image=image)
    signature = vcpu_model(VCPU_MODEL).cpuid_signature
    snp = start(host, "snp", Generation.SEV_SNP, vcpus=vcpus)
    expected = reference.snp_calc_launch_digest(vcpus, signature, path, None, None, None, 0x1, "")
    assert snp.launch_digest == expected.hex()
    sev = start(host, "sev", Generation.SEV, vcpus=vcpus)
    assert sev.launch_digest == reference.sev_calc_launch_digest(path, None, None, None).hex()
    es = start(host, "es", Generation.SEV_ES, vcpus=vcpus)
    assert es.launch_digest == reference.seves_calc_launch_digest(vcpus, signature, path, None, None, None).hex()
    assert start(host, "plain", Generation.PLAIN).launch_digest == ""


def test_a_launch_storm_waits_for_the_security_processor_in_order():
    host, told = make_host(), []
    for number in range(6):
        host.launch(guest_spec(f"vm{number}", Generation.SEV_SNP), told.append)
    run(host)
    assert [guest.spec.name for guest in told] == sorted(host.guests)
    assert all(guest.state is GuestState.RUNNING for guest in told)
    alone = make_host()
    alone.launch(guest_spec("vm", Generation.SEV_SNP), lambda _: None)
    run(alone)
    single = alone.guests["vm"]
    assert single.psp_wait_ns == 0
    assert {guest.psp_service_ns for guest in told} == {single.psp_service_ns}
    waits = [guest.psp_wait_ns for guest in told]
    assert waits == sorted(waits)
    assert waits[-1] > 3 * single.psp_service_ns
    assert host.tasks.psp_queue.busy_ns == 6 * single.psp_service_ns
    assert host.tasks.psp_queue.waited_ns == sum(waits)


def test_the_books_of_the_queue_hold_every_command_of_a_launch():
    host = make_host()
    host.launch(guest_spec("vm", Generation.SEV_SNP, vcpus=2), lambda _: None)
    run(host)
    counts = host.tasks.psp_queue.counts
    pages = len(host.guests["vm"].launched) + 2
    assert counts[SnpCommand.LAUNCH_UPDATE] == pages
    assert counts[SnpCommand.LAUNCH_START] == counts[SnpCommand.LAUNCH_FINISH] == 1
    each = COSTS["psp.launch_update_ns_per_kib"] * 4
    assert host.tasks.psp_queue.service_ns[SnpCommand.LAUNCH_UPDATE] == pages * round(each)
    assert pages > COMMANDS_AT_ONCE or pages < 100


@pytest.mark.parametrize("generation", GENERATIONS)
def test_nobody_is_told_before_the_promise(generation):
    host, told = make_host(), []
    promised = {}
    for number in range(3):
        host.launch(guest_spec(f"vm{number}", generation), lambda guest: told.append((guest.spec.name, host.now_ns)))
    while host.clock.env.peek() < SECOND * 50:
        for name, at in host.tasks.promises.items():
            assert at >= promised.get(name, 0)
            promised[name] = at
        host.clock.env.step()
    assert len(told) == 3
    assert all(now >= promised[name] for name, now in told)


def test_a_sev_launch_is_measured_by_commands_in_the_specifications_order():
    host = make_host()
    host.launch(guest_spec("vm", Generation.SEV), lambda _: None)
    run(host)
    for command in (
        LegacyCommand.LAUNCH_START, LegacyCommand.ACTIVATE, LegacyCommand.LAUNCH_UPDATE_DATA,
        LegacyCommand.LAUNCH_MEASURE, LegacyCommand.LAUNCH_FINISH,
    ):  # fmt: skip
        assert host.tasks.psp_queue.counts[command] == 1


def test_a_launch_in_place_is_the_same_launch_charged_to_nobody():
    slow, fast = make_host(), make_host()
    slow.launch(guest_spec("vm", Generation.SEV_SNP), lambda _: None)
    quick = start(fast, "vm", Generation.SEV_SNP)
    run(slow)
    assert quick.launch_digest == slow.guests["vm"].launch_digest
    assert (quick.running_ns, quick.psp_service_ns, fast.tasks.psp_queue.busy_ns) == (0, 0, 0)
    assert slow.guests["vm"].running_ns > slow.guests["vm"].psp_service_ns > 0
