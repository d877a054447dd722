"""A hypervisor and software of VMs behind bytes: the same history, with one exchange a batch."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import COSTS, DEMANDS, GENERATIONS, IMAGE, MIX, SECOND, final_state, guest_spec, ledger, rest, script

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.guest_messages import GuestMessages
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.hypervisor_server import HypervisorServer
from node.operation_codec import CodecError
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec, Registers
from node.remote_hypervisor import RemoteHypervisor
from node.remote_tenant import RemoteTenant
from node.tenant import NoBlock, TenantSpec
from node.tenant_server import TenantServer
from psp.guest_message import MessageType
from psp.report_messages import ReportRequest


def asks(placement, registers):
    """Show the report of each round, as long as there are some."""
    shared = placement.shared_gpa
    messages = GuestMessages(placement.messages, shared, shared + 4096)
    request = ReportRequest(bytes([registers.r13]), placement.messages.vmpl)
    answered = yield from messages.ask(MessageType.REPORT_REQ, request.pack())
    yield (op.Write(shared + 8192 + 4096 * registers.r13, answered.payload, private=False),)
    registers.r13 += 1
    return op.Sleep(SECOND if registers.r13 < 3 else 10**18)


PROGRAMS = {"ledger": ledger, "rest": script(rest), "asks": script(asks)}
SPEC = HostSpec("host", PRODUCTS["Milan"], 4 << 30, 100, 7, 60 * SECOND)


class Counted:
    """An exchange that keeps what was asked."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self.exchange = exchange
        self.requests: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        assert type(request) is bytes
        self.requests.append(request)
        return self.exchange(request)


class Remote:
    """A host whose hypervisor and tenants are behind bytes."""

    def __init__(self, spec: HostSpec = SPEC) -> None:
        self.hypervisor_server = HypervisorServer({"auto": IMAGE}.__getitem__)
        self.to_hypervisor = Counted(self.hypervisor_server.exchange)
        self.to_tenants: dict[str, Counted] = {}
        self.servers: dict[str, TenantServer] = {}
        self.gone: list[str] = []
        self.host = Host(
            spec, {}, {"auto": IMAGE}, COSTS, self._tenant, lambda *order: RemoteHypervisor(self.to_hypervisor, *order)
        )

    def _tenant(self, spec: TenantSpec) -> RemoteTenant:
        server = self.servers[spec.name] = TenantServer(PROGRAMS)
        self.to_tenants[spec.name] = Counted(server.exchange)
        return RemoteTenant(spec, self.to_tenants[spec.name], lambda: self.gone.append(spec.name))


def local_host(spec: HostSpec = SPEC) -> Host:
    return Host(spec, PROGRAMS, {"auto": IMAGE}, COSTS)


def run(host: Host, until_ns: int) -> None:
    while host.clock.env.peek() < until_ns:
        host.clock.env.step()


def play(host: Host, pauses: list[tuple[int, int]]) -> object:
    """Three VMs, of which one is paused and resumed and one destroyed; all that can be seen of it afterwards."""
    for generation in GENERATIONS:
        spec = guest_spec(generation.name, generation, "ledger", vcpus=2, units=60)
        host.launch(spec, lambda _: None)
    for name, (after_ns, for_ns) in zip([one.name for one in GENERATIONS] * len(pauses), pauses, strict=False):
        run(host, host.now_ns + after_ns)
        host.pause(name)
        run(host, host.now_ns + for_ns)
        host.resume(name)
    host.destroy("SEV")
    run(host, host.now_ns + 100 * SECOND)
    done = {name: final_state(host, guest) for name, guest in host.guests.items() if guest.state is GuestState.RUNNING}
    books = [
        (one.state, one.operations, one.faults, one.bytes_read, one.bytes_written, one.launch_digest, one.lost_ns)
        for one in host.guests.values()
    ]
    return done, books, host.log.close(), host.hypervisor.figures(), host.now_ns


TIMES = st.tuples(st.integers(1, 2_000_000_000), st.integers(1, 5_000_000))


@settings(max_examples=10, deadline=None)
@given(st.lists(TIMES, max_size=6))
def test_a_host_s_history_is_the_same_wherever_hypervisor_and_tenants_live(pauses) -> None:
    remote = Remote()
    assert play(remote.host, pauses) == play(local_host(), pauses)
    assert remote.gone == ["SEV"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_tenant_is_asked_once_a_batch(generation: Generation) -> None:
    remote = Remote()
    spec = guest_spec("vm", generation, "ledger", units=20)
    remote.host.launch(spec, lambda _: None, running=True)
    run(remote.host, 100 * SECOND)
    batches = sum(row.records for row in remote.host.log.close() if row.entity == "vm")
    asked = len(remote.to_tenants["vm"].requests)
    phases = sum(remote.host.guests["vm"].vcpus[0].phases.values())
    # Loaded, begun once, then answers only: a block's first batch came along with the end of the one before,
    # but where two blocks without operations follow each other.
    assert asked <= batches - phases + 2 + 20
    assert remote.servers["vm"].operations == remote.host.guests["vm"].operations


def test_operations_are_counted_where_they_are_issued() -> None:
    remote = Remote()
    remote.host.launch(guest_spec("vm", Generation.SEV_SNP, "ledger", units=5), lambda _: None)
    run(remote.host, 50 * SECOND)
    hypervisor = remote.host.hypervisor
    assert isinstance(hypervisor, RemoteHypervisor)
    assert remote.hypervisor_server.operations == hypervisor.operations > 50
    assert remote.servers["vm"].operations == remote.host.vcpus.operations > 30


def test_a_refused_launch_is_refused_in_the_same_words() -> None:
    small = dataclasses.replace(SPEC, memory_bytes=160 << 20)
    reasons = []
    for host in (Remote(small).host, local_host(small)):
        host.launch(guest_spec("vm", Generation.SEV, memory_bytes=256 << 20), lambda _: None, running=True)
        reasons.append((host.guests["vm"].state, host.guests["vm"].reason, host.hypervisor.figures()))
    assert reasons[0] == reasons[1]
    assert reasons[0][0] is GuestState.REFUSED
    with pytest.raises(LaunchRefused, match="migration agent"):
        next(Remote().host.hypervisor.receive(guest_spec("vm", Generation.SEV_SNP).machine))


def tenant(step=rest) -> tuple[RemoteTenant, Counted]:
    server = Counted(TenantServer({"p": script(step)}).exchange)
    memory = guest_spec("vm", Generation.PLAIN).memory
    spec = TenantSpec("vm", Generation.PLAIN, memory, ProgramSpec("p"), 1, (), (0xFFF0,))
    return RemoteTenant(spec, server, lambda: None), server


def three_reads(_, registers: Registers):
    registers.rbx += 1
    (data,) = yield (op.Read(registers.rbx, 1),)
    registers.rcx = len(data)
    return op.Compute(1, 1000)


def begun(remote: RemoteTenant) -> Registers:
    """A tenant at the end of its first block."""
    registers = Registers(MIX)
    assert remote.begin(0, registers) == (op.Read(1, 1),)
    assert remote.go_on(0, registers, (b"x",)) == op.Compute(1, 1000)
    return registers


def test_a_tenant_s_entry_demands_and_registers_cross() -> None:
    remote, _ = tenant(three_reads)
    assert (remote.entry, remote.demands) == (MIX, (DEMANDS,))
    registers = begun(remote)
    assert (registers.rbx, registers.rcx, registers.rip) == (1, 1, MIX)


def test_a_block_read_ahead_is_used_after_a_whole_phase_only() -> None:
    remote, server = tenant(three_reads)
    registers = begun(remote)
    asked = len(server.requests)
    registers.r14, registers.r15 = 1, 0
    assert remote.begin(0, registers) == (op.Read(2, 1),)
    assert registers.rbx == 2
    assert len(server.requests) == asked
    remote.go_on(0, registers, (b"x",))
    registers.rbx = 40  # whoever changes registers meanwhile is obeyed
    registers.r14 = 1
    assert remote.begin(0, registers) == (op.Read(41, 1),)
    assert len(server.requests) == asked + 2


def test_what_was_read_ahead_is_gone_after_a_pause() -> None:
    remote, server = tenant(three_reads)
    registers = begun(remote)
    registers.r14 = 1
    remote.forget(0)
    with pytest.raises(NoBlock):
        remote.begin(0, registers)
    remote.rebuild(0)
    asked = len(server.requests)
    assert remote.begin(0, registers) == (op.Read(2, 1),)
    assert len(server.requests) == asked + 1


def test_an_error_of_a_block_that_is_read_ahead_is_raised_when_the_block_is_begun() -> None:
    def second_fails(_, registers: Registers):
        registers.rbx += 1
        yield ()
        if registers.rbx == 1:
            return None
        raise AssertionError

    def fails_at_once(_, registers: Registers):
        registers.rbx += 1
        assert registers.rbx == 1
        yield ()

    for step, expected in ((second_fails, "go_on"), (fails_at_once, "begin")):
        remote, _ = tenant(step)
        registers = Registers(MIX)
        assert remote.begin(0, registers) == ()
        assert remote.go_on(0, registers, ()) is None
        if expected == "go_on":
            assert remote.begin(0, registers) == ()
        with pytest.raises(AssertionError):
            remote.go_on(0, registers, ()) if expected == "go_on" else remote.begin(0, registers)


def test_a_closed_tenant_may_be_closed_again() -> None:
    remote, server = tenant()
    remote.close()
    asked = len(server.requests)
    remote.drop(0)
    remote.close()
    assert len(server.requests) == asked


def test_a_task_that_there_is_not_is_refused() -> None:
    remote = Remote()
    with pytest.raises(CodecError, match=r"task: expected one of bring_up, .* got _give_back"):
        remote.to_hypervisor(b"\x94\x01\x00\xaa_give_back\x90")


def test_a_hypervisor_elsewhere_asks_for_the_ciphertext_hiding_that_its_host_is_set_up_for() -> None:
    spec = replace(SPEC, product=PRODUCTS["Turin"], platform=Platform(max_snp_asid=3))
    host = Remote(spec).host
    assert host.hypervisor.figures().asids_es_snp == 3
    assert host.board.bus.host_view is not host.board.controller


@pytest.mark.parametrize("svsm", [False, True])
def test_guests_are_answered_the_same_behind_bytes_and_through_a_pause(svsm):
    seen = []
    for host in (local_host(), Remote().host):
        spec = replace(guest_spec("vm", Generation.SEV_SNP, "asks"), svsm=svsm)
        host.launch(spec, lambda _: None)
        run(host, host.now_ns + 2 * SECOND)
        host.pause("vm")
        run(host, host.now_ns + SECOND)
        host.resume("vm")
        run(host, host.now_ns + 10 * SECOND)
        guest = host.guests["vm"]
        assert guest.vcpus[0].registers.r13 == 3
        shared = guest.spec.memory.placement("vm", 0, 11).shared_gpa + 8192
        read = op.Read(shared, 3 * 4096, private=False)
        seen.append((host.board.execute_guest(host.board.vmcb("vm", 0), (read,)), host.log.close(), host.now_ns))
    assert seen[0] == seen[1]
    assert seen[0][0][0].count(b"\xff" * 32) == 3, "a report's field for a migration agent that is not there"
