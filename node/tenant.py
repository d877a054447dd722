"""A VM's software where it runs: start-up code and one program per vCPU.

A host reaches it only through ``begin`` and ``go_on``: registers and answers
in, a batch of operations or a block's end out. So it may live in the host's
process or in one of its own, and nothing else of it can be seen from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from node.counter_random import CounterRandom
from node.disk_encryption import disk_key
from node.generation import CAPABILITIES, Generation
from node.guest_kernel import CANARY_BYTES, GuestKernel
from node.guest_memory_map import GuestMemoryMap
from node.identity_cache import RecordsById
from node.kernel_above_svsm import KernelAboveSvsm
from node.kernel_settings import CAREFUL, KernelSettings
from node.message_place import MessagePlace
from node.operations import Answer, Fault, GuestOperation
from node.program import Block, Demand, Ending, Program, ProgramFactory, ProgramSpec, Registers
from node.svsm import Service, Svsm, SvsmCheck
from node.svsm_call import Protocol as SvsmProtocol
from node.svsm_core import core_service
from node.svsm_devices import device_service
from node.svsm_memory import GUEST_VMPL, SvsmGuest
from node.svsm_vtpm import vtpm_service
from tio.device_identity import CardKind

SERVICES: Mapping[int, Service] = {
    SvsmProtocol.CORE: core_service, SvsmProtocol.VTPM: vtpm_service, SvsmProtocol.DEVICES: device_service,
}  # fmt: skip
"""What every SVSM serves."""

Outcome = tuple[GuestOperation, ...] | Ending
"""What a block did: a batch to execute (a tuple), or how it ended."""


class NoBlock(Exception):
    """The vCPU's RIP names no block of its program."""


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """All that a VM's software is made of.

    ``launched`` are the GPAs that firmware measured, ``reset_rips`` where each
    vCPU comes out of reset.
    """

    name: str
    generation: Generation
    memory: GuestMemoryMap
    program: ProgramSpec
    seed: int
    launched: tuple[int, ...]
    reset_rips: tuple[int, ...]
    sev_features: int = 0
    svsm: SvsmGuest | None = None
    """Where an SVSM runs below."""
    cpuid_gpa: int | None = None
    """The CPUID page, where the firmware image has one."""
    kernel: KernelSettings = CAREFUL
    secrets_gpa: int | None = None
    """The secrets page, where the firmware image has one."""
    devices: tuple[CardKind, ...] = ()
    """Cards that were given to it, in the order in which it knows them."""
    devices_move: bool = False
    """Whether its hypervisor may ask for them, to move it."""

    @property
    def threads(self) -> int:
        """How many programs run: one on each vCPU, and the SVSM's of each after all of them."""
        return len(self.reset_rips) * (1 if self.svsm is None else 2)


class TenantPort(Protocol):
    """What a host knows of a VM's software, wherever that lives.

    ``vcpu`` is everywhere the number of a thread: a vCPU's, or behind those of all vCPUs its SVSM's.
    """

    @property
    def entry(self) -> int:
        """RIP at which the boot processor leaves the start-up code."""

    @property
    def demands(self) -> tuple[tuple[Demand, ...], ...]:
        """Each vCPU's demands."""

    def begin(self, vcpu: int, registers: Registers) -> Outcome:
        """Start the block at RIP. Raises NoBlock."""

    def go_on(self, vcpu: int, registers: Registers, answers: tuple[Answer, ...]) -> Outcome:
        """Give the block that runs its answers."""

    def drop(self, vcpu: int) -> None:
        """Break a vCPU's block off."""

    def forget(self, vcpu: int) -> None:
        """Throw away every object of a vCPU's program."""

    def rebuild(self, vcpu: int) -> None:
        """Make a vCPU's program anew from its specification."""

    def close(self) -> None:
        """The VM is gone."""


TenantFactory = Callable[[TenantSpec], TenantPort]


class _Software:
    """What one thread runs, from when it is made until it is forgotten."""

    __slots__ = ("batch", "blocks", "kernel", "program", "running")

    def __init__(self, program: Program | None) -> None:
        self.program = program
        """None of an SVSM."""
        self.blocks: Mapping[int, Callable[[Registers], Block]] = {}
        """Blocks by RIP, from the first that the thread runs on."""
        self.kernel: GuestKernel | KernelAboveSvsm | None = None
        self.running: Block | None = None
        """The block that it is in."""
        self.batch: tuple[GuestOperation, ...] | None = None
        """What that asked for last; None where the kernel has taken the block over."""


class Tenant:
    """A VM's software in this process: that of each thread is made when it runs its next block, and pure.

    A VM that comes to another host often goes on in the middle of a phase, and leaves before that ends.
    """

    def __init__(
        self, spec: TenantSpec, factory: ProgramFactory, svsm_skips: frozenset[SvsmCheck] = frozenset()
    ) -> None:
        self._spec = spec
        self._svsm_skips = svsm_skips
        self._factory = factory
        self._made: dict[int, _Software] = {}
        self._paused = set[int]()
        """Threads of which nothing may be here."""
        facts = _facts_of(spec, factory)
        if facts is None:
            programs = [self._build(vcpu) for vcpu in range(len(spec.reset_rips))]
            self._made = {vcpu: _Software(program) for vcpu, program in enumerate(programs)}
            facts = programs[0].entry, tuple([program.demands for program in programs])
            _note_facts(spec, factory, facts)
        self.entry, self.demands = facts
        """Demands are those of vCPUs: an SVSM has no phases."""

    @property
    def programs(self) -> list[Program | None]:
        """Those that are there, by thread."""
        return [None if one is None else one.program for one in self._threads()]

    @property
    def blocks(self) -> list[Mapping[int, Callable[[Registers], Block]]]:
        """The blocks of each thread by RIP, where they are laid out."""
        return [{} if one is None else one.blocks for one in self._threads()]

    @property
    def running(self) -> list[Block | None]:
        """The block that each thread is in."""
        return [None if one is None else one.running for one in self._threads()]

    def _threads(self) -> list[_Software | None]:
        return [self._made.get(thread) for thread in range(self._spec.threads)]

    def begin(self, vcpu: int, registers: Registers) -> Outcome:
        """Start the block at RIP. Raises NoBlock."""
        own = self._made.get(vcpu)
        if own is None or not own.blocks:
            own = self._lay_out(vcpu, own)
        start = own.blocks.get(registers.rip)
        if start is None:
            raise NoBlock
        block = start(registers)
        try:
            batch = next(block)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        own.running = block
        own.batch = batch
        return batch

    def go_on(self, vcpu: int, registers: Registers, answers: tuple[Answer, ...]) -> Outcome:
        """Give the block that runs its answers; it holds the registers it was begun with."""
        own = self._made[vcpu]
        block = own.running
        assert block is not None
        try:
            asked = own.batch
            if asked is None:
                return block.send(answers)
            faulted = type(answers[0]) is Fault if len(answers) == 1 else Fault in map(type, answers)
            if faulted and own.kernel is not None and (handler := own.kernel.handler) is not None:
                own.batch = None
                block = own.running = handler.take_over(block, asked, answers)
                return next(block)
            own.batch = asked = block.send(answers)
        except StopIteration as end:
            own.running = None
            return end.value  # type: ignore[no-any-return]
        return asked

    def drop(self, vcpu: int) -> None:
        """Break a vCPU's block off."""
        own = self._made.get(vcpu)
        if own is not None:
            own.running = None

    def forget(self, vcpu: int) -> None:
        """Throw away every object of a vCPU's program."""
        self._made.pop(vcpu, None)
        self._paused.add(vcpu)

    def rebuild(self, vcpu: int) -> None:
        """Make a vCPU's program anew from its specification, when it runs a block.

        One that is there was made from that and cannot have changed: programs keep nothing.
        """
        self._paused.discard(vcpu)
        self.drop(vcpu)

    def _build(self, vcpu: int) -> Program:
        spec = self._spec
        bounces = CAPABILITIES[spec.generation].key_per_vm
        messages = self._messages(vcpu)
        placement = spec.memory.placement(
            spec.name, vcpu, spec.seed, bounces=bounces, messages=messages, devices=spec.devices,
            trusts_devices=CAPABILITIES[spec.generation].trusted_devices, devices_move=spec.devices_move,
        )  # fmt: skip
        if spec.kernel.encrypts_disk:
            placement = replace(placement, disk_key=disk_key(spec.name, spec.seed))
        return self._factory(spec.program, placement)

    def _messages(self, vcpu: int) -> MessagePlace | None:
        spec, svsm = self._spec, self._spec.svsm
        if svsm is not None:
            # Above an SVSM only the boot processor's kernel has a GHCB.
            if vcpu:
                return None
            return MessagePlace(svsm.secrets_gpa, GUEST_VMPL, vcpu, spec.memory, spec.launched, svsm.heap_gpa)
        if spec.secrets_gpa is None or not CAPABILITIES[spec.generation].rmp:
            return None
        checks = spec.kernel.checks_answers
        return MessagePlace(spec.secrets_gpa, 0, vcpu, spec.memory, spec.launched, checks_answers=checks)

    def _lay_out(self, vcpu: int, own: _Software | None) -> _Software:
        """The software of a thread that is about to run a block. Raises NoBlock for one that is paused."""
        spec = self._spec
        if vcpu >= len(spec.reset_rips):
            assert spec.svsm is not None
            below = vcpu - len(spec.reset_rips)
            own = self._made[vcpu] = _Software(None)
            own.blocks = Svsm(spec.svsm, spec.memory, below, spec.name, spec.seed, SERVICES, self._svsm_skips).blocks
            return own
        if own is None:
            if vcpu in self._paused:
                raise NoBlock
            own = self._made[vcpu] = _Software(self._build(vcpu))
        program = own.program
        assert program is not None
        canary = CounterRandom(spec.seed).octets(spec.name, "C-bit canary", vcpu, CANARY_BYTES)
        if spec.svsm is None:
            own.kernel = GuestKernel(
                spec.generation, spec.memory, spec.launched, vcpu, spec.reset_rips[vcpu], program.entry, spec.kernel,
                spec.cpuid_gpa, canary, spec.sev_features, self._messages(vcpu),
            )  # fmt: skip
        else:
            own.kernel = KernelAboveSvsm(
                spec.svsm, spec.memory, spec.launched, vcpu, spec.reset_rips, program.entry, spec.kernel,
                spec.cpuid_gpa, canary,
            )  # fmt: skip
        own.blocks = {**own.kernel.blocks, **program.blocks}
        return own

    def close(self) -> None:
        """Nothing of it is anywhere else."""


_Facts = tuple[int, tuple[tuple[Demand, ...], ...]]
"""Where the boot processor leaves its start-up code, and each vCPU's demands."""
_MOST_KNOWN = 1 << 14
_known: dict[tuple[object, ...], tuple[GuestMemoryMap, _Facts]] = {}
"""Of programs that were built before; with the map whose identity is in the key, lest another gets it."""
_seen = RecordsById[tuple[TenantSpec, ProgramFactory, _Facts]]()
"""The same by specifications."""


def _key(spec: TenantSpec, factory: ProgramFactory) -> tuple[object, ...] | None:
    """All that a VM's programs are made of where it has nothing but memory; None for others."""
    if spec.svsm is not None or spec.devices or CAPABILITIES[spec.generation].rmp:
        return None
    if spec.kernel is not CAREFUL and spec.kernel != CAREFUL:
        return None
    program, vcpus = spec.program, len(spec.reset_rips)
    kinds = tuple([type(value) for _, value in program.parameters])  # 1, 1.0 and True are one key.
    return (
        factory, program.name, program.parameters, kinds, id(spec.memory), spec.name, spec.seed, spec.generation,
        vcpus, spec.devices_move,
    )  # fmt: skip


def _facts_of(spec: TenantSpec, factory: ProgramFactory) -> _Facts | None:
    seen = _seen.get(id(spec))
    if seen is not None and seen[1] is factory:
        return seen[2]
    found = _known.get(_key(spec, factory) or ())
    if found is None:
        return None
    return _seen.keep((spec, factory, found[1]))[2]


def _note_facts(spec: TenantSpec, factory: ProgramFactory, facts: _Facts) -> None:
    key = _key(spec, factory)
    if key is not None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = spec.memory, facts


def local_tenants(
    programs: Mapping[str, ProgramFactory], svsm_skips: frozenset[SvsmCheck] = frozenset()
) -> TenantFactory:
    """Tenants in this process, of programs by name; ``svsm_skips`` is what their SVSMs leave out."""
    return lambda spec: Tenant(spec, programs[spec.program.name], svsm_skips)
