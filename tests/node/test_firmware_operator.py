"""A host's firmware is replaced while its guests run: what they notice, what is refused, and what the books say."""

import pytest
from toy_guests import SECOND, final_state, guest_spec, make_host, run, start

from cluster.firmware_updates import update_image
from node.firmware_operator import Action
from node.generation import Generation
from node.guest import GuestState
from node.platform import Platform
from node.product import PRODUCTS
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status

OLD, NEW = (1, 52, 4), (1, 55, 29)


def image(version, product="Milan"):
    return update_image(PRODUCTS[product], ".".join(map(str, version)))


@pytest.fixture
def host():
    return make_host(platform=Platform(firmware_api=OLD))


def update(host, version, *, commit=False):
    host.firmware.update(image(version), commit=commit)
    run(host, host.now_ns + SECOND)
    return host.firmware.entries[-1].result


def commit(host):
    host.firmware.commit()
    run(host, host.now_ns + SECOND)
    return host.firmware.entries[-1].result


def test_guests_run_on_as_if_nothing_had_happened(host):
    undisturbed = make_host(platform=Platform(firmware_api=OLD))
    vm, other = (start(one, "vm", Generation.SEV_SNP, "ledger", vcpus=2, units=30) for one in (host, undisturbed))
    assert update(host, NEW) == "SUCCESS"
    assert commit(host) == "SUCCESS"
    for one in (host, undisturbed):
        run(one)
    assert (vm.state, vm.faults) == (GuestState.RUNNING, 0)
    assert final_state(host, vm) == final_state(undisturbed, other)


def test_the_books_say_what_runs_what_is_committed_and_over_whom_it_went(host):
    start(host, "vm", Generation.SEV_SNP)
    assert update(host, NEW) == "SUCCESS"
    entry = host.firmware.entries[0]
    assert (entry.action, entry.current.version, entry.committed.version) == (Action.UPDATE, NEW, OLD)
    assert (entry.reported_tcb, entry.guests) == (entry.committed.tcb, 1)
    assert entry.ended_ns > entry.asked_ns
    assert commit(host) == "SUCCESS"
    entry = host.firmware.entries[1]
    assert (entry.action, entry.committed.version, entry.reported_tcb) == (Action.COMMIT, NEW, entry.current.tcb)


def test_each_guest_s_context_is_touched_once_and_the_sev_interface_comes_up_again(host):
    for name in ("one", "two"):
        start(host, name, Generation.SEV_SNP)
    before = dict(host.tasks.psp_queue.counts)
    assert update(host, NEW) == "SUCCESS"
    after = host.tasks.psp_queue.counts
    assert after[SnpCommand.GUEST_STATUS] - before.get(SnpCommand.GUEST_STATUS, 0) == 2
    for command in (LegacyCommand.SHUTDOWN, SnpCommand.DOWNLOAD_FIRMWARE_EX, LegacyCommand.INIT):
        assert after[command] - before.get(command, 0) == 1
    assert start(host, "es", Generation.SEV_ES).state is GuestState.RUNNING


def test_launches_keep_the_committed_tcb_of_their_time(host):
    seen = []
    for order in (lambda: update(host, NEW), lambda: commit(host), lambda: "SUCCESS"):
        guest = start(host, f"vm {len(seen)}", Generation.SEV_SNP)
        seen.append(guest.launch_tcb)
        assert order() == "SUCCESS"
    firmware = host.board.psp.firmware
    assert seen == [0x7308_0000_0000_0003, 0x7308_0000_0000_0003, firmware.current.tcb]
    assert [host.guests[f"vm {number}"].launch_tcb for number in range(3)] == seen


def test_a_provisional_update_can_be_taken_back_and_a_committed_one_cannot(host):
    assert [update(host, one) for one in (NEW, OLD, NEW)] == ["SUCCESS"] * 3
    assert commit(host) == "SUCCESS"
    assert update(host, OLD) == Status.BAD_SVN.name
    assert host.board.psp.firmware.current.version == NEW


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_ES])
def test_a_host_with_guests_of_the_sev_interface_is_not_asked(host, generation):
    start(host, "vm", generation)
    before = dict(host.tasks.psp_queue.counts)
    assert update(host, NEW) == "SEV or SEV-ES guests are there"
    assert host.tasks.psp_queue.counts == before
    host.destroy("vm")
    run(host, host.now_ns + SECOND)
    assert update(host, NEW) == "SUCCESS"


def test_no_sev_guest_comes_while_the_interface_is_down(host):
    host.firmware.update(image(NEW), commit=False)
    said = []
    host.launch(guest_spec("sev", Generation.SEV), said.append)
    host.launch(guest_spec("snp", Generation.SEV_SNP), said.append)
    run(host, host.now_ns + 60 * SECOND)
    assert {one.spec.name: (one.state, one.reason) for one in said} == {
        "sev": (GuestState.REFUSED, "firmware of the security processor is being replaced"),
        "snp": (GuestState.RUNNING, ""),
    }
    assert host.firmware.entries[0].result == "SUCCESS"


def test_an_image_for_another_line_is_refused_and_leaves_the_host_as_it_was(host):
    start(host, "vm", Generation.SEV_SNP)
    host.firmware.update(image((1, 55, 40), "Genoa"), commit=False)
    run(host, host.now_ns + SECOND)
    assert host.firmware.entries[0].result == Status.BAD_SIGNATURE.name
    assert host.board.psp.firmware.current.version == OLD
    assert update(host, NEW) == "SUCCESS"


def test_memory_for_the_image_is_given_back(host):
    before = host.hypervisor.figures().memory_bytes
    assert update(host, NEW) == "SUCCESS"
    assert host.hypervisor.figures().memory_bytes == before


def test_a_naples_takes_old_firmware_back_at_once():
    host = make_host(product="Naples", min_sev_asid=9)
    host.firmware.update(image((0, 17, 11), "Naples"), commit=False)
    run(host, host.now_ns + SECOND)
    entry = host.firmware.entries[0]
    assert (entry.result, entry.committed.version, entry.reported_tcb) == ("SUCCESS", (0, 17, 11), 0)
    host.firmware.commit()
    run(host, host.now_ns + SECOND)
    assert host.firmware.entries[1].result != "SUCCESS"
