"""One host with a victim and a tenant of the attacker's, and the hands that an attack gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cluster.laboratory.hands import Hands
from cluster.laboratory.interface import Interface, is_there
from cluster.laboratory.owner import SECRET, Owner
from cluster.laboratory.protection import PROTECTIONS, Column
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import Guest, GuestSpec, GuestState
from node.guest_memory_map import memory_map
from node.host import Host, HostSpec
from node.hypervisor import Hypervisor
from node.hypervisor_port import HypervisorFactory, LaunchRefused
from node.kernel_settings import CAREFUL, KernelSettings
from node.memory_cipher import CipherMode
from node.operations import Answer
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from node.program import ProgramFactory, ProgramSpec
from node.vcpu import VcpuState
from psp.system_bus import PAGE_BYTES
from workloads.attacks import newcomer, vault
from workloads.attacks.newcomer import Newcomer
from workloads.attacks.target import Attack, Household, Page, Target
from workloads.attacks.vault import Vault

VICTIM, TENANT = "victim", "tenant"
HOST_BYTES = 576 << 20
GUEST_BYTES = 64 << 20
GHOST_LINE = 256 << 20
"""An address line that guests' frames, given out from below, do not have, nor the RMP and the tables at the end."""
SEED = 11
_SPARE_FRAMES = 4


class IdleAttack(Exception):
    """An attack ended without one operation."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where an attack takes place. The column decides the platform's mode."""

    column: Column
    product: str
    platform: Platform = AS_USUAL
    tracks_validation: bool = False
    """The victim keeps books of what it validated, also where an attack presumes that it does not."""
    checks_sev_status: bool = False
    """The victim checks SEV_STATUS and the place of the C-bit when it comes up."""
    reads_cpuid_page: bool = False
    """The victim answers CPUID from the page that firmware checked."""
    demands_alias_check: bool = False
    """The victim's owner accepts no platform that nobody checked for DRAM aliases."""
    ciphers: tuple[CipherMode, ...] = ()
    """What the product's memory controllers can do, its default first, where that is to be another than they have."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part in a row: which program the victim runs, on what kernel, and which hypervisor runs it."""

    victim: str = "vault"
    tracks_validation: bool = True
    """Whether the victim's kernel keeps books of what it validated, if its setting says nothing of it."""
    hypervisor: HypervisorFactory = Hypervisor


USUAL = Cast()


def act_out(
    setting: Setting, attack: Callable[[Target], Attack], needs: Interface | None = None, cast: Cast = USUAL
) -> tuple[Ledger, Transcript]:
    """Carry an attack out on a host of its own: what was true there, and what everybody was told.

    Without the interface that it ``needs`` it does not begin.
    Where the firmware finds the host unfit and does not start, nobody becomes a victim. Raises IdleAttack.
    """
    ledger, transcript = Ledger(), Transcript()
    ledger.protect(VICTIM)
    try:
        scene = Scene(setting, ledger, transcript, cast)
    except LaunchRefused:
        if not setting.platform.alias_check:
            raise  # Nothing else may keep a host from starting, or every attack on it would count as blocked.
    else:
        if needs is not None and not scene.offers(needs):
            transcript.absent(needs)
        else:
            scene.play(attack)
    return ledger, transcript


class Scene:
    """A host whose victim has come to its first rest. The transcript holds everything since the host's boot."""

    def __init__(self, setting: Setting, ledger: Ledger, transcript: Transcript, cast: Cast = USUAL) -> None:
        protection = PROTECTIONS[setting.column]
        product = PRODUCTS[setting.product]
        product = replace(product, ciphers=setting.ciphers or product.ciphers)
        platform = replace(setting.platform, mode=protection.mode)
        spec = HostSpec("host", product, HOST_BYTES, product.min_sev_asid, SEED, 60 * 10**9, platform=platform)
        images = {"auto": laboratory_image()}
        self.host = Host(
            spec, _PROGRAMS, images, dict(load_cost_table()), hypervisor=cast.hypervisor, observer=transcript.observe
        )
        kernel = KernelSettings(
            tracks_validation=cast.tracks_validation or setting.tracks_validation,
            checks_sev_status=setting.checks_sev_status,
            checks_c_bit=setting.checks_sev_status,
            reads_cpuid_page=setting.reads_cpuid_page,
            checks_cpuid=False,
        )
        self._launch(VICTIM, protection.launched, _program(cast, protection.launched, kernel), kernel)
        self._launch(TENANT, protection.launched, ProgramSpec("vault"), CAREFUL)
        ledger.keep(VICTIM, "the secret", _vault(VICTIM).content(vault.SECRET))
        ledger.keep(VICTIM, "what its owner sends it", SECRET)
        if cast.victim == "newcomer":
            # Where it tries the C-bit out lies no memory that it uses.
            ledger.map_one_to_one(VICTIM, newcomer.canary_gpa(_vault(VICTIM).placement))
        self.target = self._look_up()
        owner = Owner(self.host.board, transcript, VICTIM, setting.demands_alias_check)
        self._hands = Hands(self.host.board, TENANT, transcript, owner)
        for guest in self.host.guests.values():
            self.let_run(guest)

    def offers(self, interface: Interface) -> bool:
        """Whether the host has an interface."""
        # A dump of the modules shows a plain host's secrets: what the laboratory sees in looking is nobody's loot.
        return is_there(interface, Hands(self.host.board, TENANT, Transcript()), self.target)

    def play(self, attack: Callable[[Target], Attack]) -> None:
        """Carry an attack out, and let the victim do one more round. Raises IdleAttack."""
        program = attack(self.target)
        tried = 0
        answers: tuple[Answer, ...] | None = None
        while True:
            try:
                batch = program.send(answers)  # type: ignore[arg-type]
            except StopIteration:
                break
            tried += len(batch)
            answers = self._hands.act(batch) if batch else self.let_run(self.host.guests[VICTIM])
        if not tried:
            raise IdleAttack(getattr(attack, "__name__", repr(attack)))
        self.let_run(self.host.guests[VICTIM])

    def let_run(self, guest: Guest) -> tuple[Answer, ...]:
        """Let a VM run until it rests again or has ended; a VM without a control block cannot run."""
        if guest.spec.name not in self.host.board.vmcbs:
            return ()
        vcpu = guest.vcpus[0]
        before = (vcpu.slept_from_ns, vcpu.registers.rip)
        while guest.state is GuestState.RUNNING:
            self.host.clock.env.step()
            if vcpu.state is VcpuState.SLEEPING and (vcpu.slept_from_ns, vcpu.registers.rip) != before:
                break
        return ()

    # Setting up.

    def _launch(self, name: str, generation: Generation, program: ProgramSpec, kernel: KernelSettings) -> None:
        spec = GuestSpec(name, generation, 1, GUEST_BYTES, program, SEED, kernel=kernel)
        self.host.launch(spec, lambda _: None, running=True)
        assert self.host.guests[name].state is GuestState.RUNNING, self.host.guests[name].reason

    def _look_up(self) -> Target:
        """What the hypervisor's books say, and frames that it takes for the attack."""
        hypervisor = self.host.hypervisor
        assert isinstance(hypervisor, Hypervisor)
        frames = [hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(_SPARE_FRAMES + 1)]
        victim, tenant = (self._household(hypervisor, name) for name in (VICTIM, TENANT))
        return Target(
            victim, tenant, tuple(frames[1:]), frames[0], 1 << self.host.spec.product.c_bit, GHOST_LINE,
            free_asid=max(victim.asid, tenant.asid) + 1,
        )  # fmt: skip

    def _household(self, hypervisor: Hypervisor, name: str) -> Household:
        record, program = hypervisor.launched(name), _vault(name)

        def page(gpa: int) -> Page:
            return Page(gpa, record.spa_of(gpa))

        return Household(
            name, record.asid, record.gctx, record.handle, record.c_bit,
            secret=page(program.private(vault.SECRET)),
            value=page(program.private(vault.VALUE)),
            other=page(program.private(vault.OTHER)),
            answer=page(program.private(vault.ANSWER)),
            request=page(program.private(vault.REQUEST)),
            code=page(program.private(vault.CODE)),
            inbox=page(program.shared(vault.INBOX)),
            outbox=page(program.shared(vault.OUTBOX)),
        )  # fmt: skip


def status_gpa() -> int:
    """Where the victim keeps its status."""
    return _vault(VICTIM).status


def code_gpa() -> int:
    """Where the victim keeps what it runs."""
    return _vault(VICTIM).private(vault.CODE)


_PROGRAMS: Mapping[str, ProgramFactory] = {"vault": Vault.build, "newcomer": Newcomer.build}


def _program(cast: Cast, generation: Generation, kernel: KernelSettings) -> ProgramSpec:
    if cast.victim == "vault":
        return ProgramSpec("vault")
    checks = (newcomer.CHECKS_STATUS, int(kernel.checks_sev_status)), (newcomer.CHECKS_C_BIT, int(kernel.checks_c_bit))
    return ProgramSpec(cast.victim, ((newcomer.GENERATION, generation.name), *checks))


def _vault(name: str) -> Vault:
    return Vault(memory_map(GUEST_BYTES, 1).placement(name, 0, SEED))
