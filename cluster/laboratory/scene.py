"""One host with a victim and a tenant of the attacker's, and the hands that an attack gets there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

from cluster.laboratory.bad_hypervisor import BadHypervisor, Orders, Prelude
from cluster.laboratory.chip_hands import old_level
from cluster.laboratory.external_counter import ExternalCounter
from cluster.laboratory.hands import Hands
from cluster.laboratory.interface import Interface, is_there
from cluster.laboratory.move_hands import MoveHands
from cluster.laboratory.outside import Outside
from cluster.laboratory.owner_habits import CAREFUL as CAREFUL_OWNER
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.owner_secret import SECRET
from cluster.laboratory.protection import PROTECTIONS, Column
from cluster.laboratory.victims import IMAGE, PROGRAMS, expected_measurement, ordered
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.root_keys import product_root
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.encryption_setup import SHARED_VIEW
from node.generation import CAPABILITIES, Generation
from node.guest import Guest, GuestSpec, GuestState
from node.guest_functions import guest_device_id
from node.guest_memory_map import memory_map
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.kernel_settings import CAREFUL, KernelSettings
from node.memory_cipher import CipherMode
from node.message_place import MessagePlace
from node.operations import Answer, HostRead, HostWrite
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from node.program import Placement, ProgramSpec
from node.svsm import SvsmCheck, vtpm_seed
from node.svsm_memory import TPM_GPA
from node.tenant import local_tenants
from node.vcpu import Vcpu, VcpuState
from node.vmsa import SevFeature
from psp.amd_certificate import AmdCertificate
from psp.elliptic import COORDINATE_BYTES
from psp.sev_certificate import KeyUsage
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from tio.device_identity import CardKind
from tio.tdisp import LockFlags
from workloads.attacks import colluder, newcomer, vault
from workloads.attacks.caller import Caller
from workloads.attacks.chooser import Chooser
from workloads.attacks.console import Console
from workloads.attacks.counted import ASKS, HEAR_RIP, QUESTION_BYTES, Counted
from workloads.attacks.counted import NOTICED as COUNTED_NOTICED
from workloads.attacks.depositor import DEVICE, NOTICED, SERIAL, Depositor
from workloads.attacks.depositor_ways import DepositorWays
from workloads.attacks.given_card import GivenCard
from workloads.attacks.grower import Grower
from workloads.attacks.hypervisor_books import BookOperation, TellDr7
from workloads.attacks.lock_breaking import interrupts_on
from workloads.attacks.petitioner import Petitioner
from workloads.attacks.service import HAS_GHCB, NO_IA32, REGISTERS_GHCB, RESTRICTED, STACK, VERIFIES, Service
from workloads.attacks.target import Attack, Household, Target
from workloads.attacks.target_page import Page
from workloads.attacks.vault import Vault

VICTIM, TENANT = "victim", "tenant"
OWN_CARD = CardSlot(1, CardKind.GPU, SERIAL, 1 << 16)
"""The victim's device."""
OTHER_CARD = CardSlot(2, CardKind.GPU, "0002", 1 << 17)
HOST_BYTES = 576 << 20
GUEST_BYTES = 64 << 20
GHOST_LINE = 256 << 20
"""An address line that guests' frames, given out from below, do not have, nor the RMP and the tables at the end."""
SEED = 11
_SVSM_AS_IT_WAS = frozenset({SvsmCheck.ZERO_ON_VALIDATE})
"""Without the fix of row 47, as the matrix has it by default."""
_SPARE_FRAMES = 16
_NOWHERE = 1 << 50
"""A guest-physical address that no guest has."""
_PATIENCE_NS = 10 * 10**9
"""Of virtual time, in which a victim that rests a second between rounds must have rested anew."""
_LOOKS = "checks_certificates", "checks_identity", "checks_measurements"


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
    """The victim checks SEV_STATUS when it comes up."""
    checks_c_bit: bool = False
    """It tries out whether the C-bit is where it was told."""
    checks_cpuid: bool = False
    """It ends itself where the hypervisor's CPUID denies what SEV_STATUS has shown."""
    checks_jump_table: bool = True
    """It lays the jump table of SEV-ES where its own firmware has it."""
    checks_carry: bool = False
    """A victim whose memory grows takes a page that was valid before for an attack."""
    reads_cpuid_page: bool = False
    """The victim answers CPUID from the page that firmware checked."""
    checks_answers: bool = True
    """The victim's kernel looks at the numbers of the security processor's answers."""
    owner: OwnerHabits = CAREFUL_OWNER
    """What the victim's owner looks at."""
    old_firmware: bool = False
    """Nobody has updated the security processor's firmware; what hosts are sold with today is newer."""
    svsm: bool = False
    """The victim is an SVSM, where there can be one; its operating system is the attacker's."""
    svsm_zeroes: bool = False
    """The SVSM clears a page before it gives rights to it."""
    victim: str = "vault"
    """The victim's program, by its name."""
    platform_key: bool = False
    """The private key that the victim's platform agrees with is a secret of the victim's."""
    sev_features: int = 0
    """What the victim asks for at launch, where it is an SNP guest."""
    disables_ia32: bool = False
    """The victim's kernel has no gate for int 0x80."""
    vc_handler_verifies: bool = False
    """The victim's #VC handler decodes the instruction and compares."""
    page_tables: bool = False
    """The victim has page tables of its own."""
    two_processes: bool = False
    """The victim has two vCPUs, each with page tables of its own."""
    tenant_spins: bool = False
    """The tenant never rests."""
    prelude: Prelude | None = None
    """What the hypervisor does of its own before SNP starts."""
    snp_policy: int = 0
    """What the owner of an SNP guest demands of firmware and platform: bits of its policy beside the usual."""
    smt_off: bool = False
    """Each core of the host has one thread."""
    cards: tuple[CardSlot, ...] = ()
    """What is in the host's slots. The victim gets the first, where it has a device at all; the second is nobody's."""
    ways: DepositorWays = DepositorWays()  # noqa: RUF009 - frozen
    """Those of a victim that has a device."""
    device_scrubs: bool = False
    """Its device clears what trusted work left in it."""
    tenant_has_card: bool = False
    """The attacker's guest has the other card, where it can trust it."""
    outbox_is_secret: bool = False
    """What the victim sends through its outbox is a secret that it hands to a device of its own."""
    moves: bool = False
    """There is another host of the attacker's, and on both a migration agent that SNP guests are launched with."""
    open_without_key: bool = False
    """A victim without a key of its own keeps no secret."""
    agent_verifies_peer: bool = True
    """Migration agents look at each other's reports."""
    agent_keeps_ledger: bool = False
    """They take no context in twice."""
    external_counter: bool = False
    """A victim that numbers its rounds asks a counter outside of its host whether it is the newest."""
    sev_policy: int = 0
    """What the owner of a SEV guest demands of firmware: bits of its policy beside the usual."""
    ciphers: tuple[CipherMode, ...] = ()
    """What the product's memory controllers can do, its default first, where that is to be another than they have."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part in a row beside the victim: on what kernel it runs, and which hypervisor runs it."""

    tracks_validation: bool = True
    """Whether the victim's kernel keeps books of what it validated, if its setting says nothing of it."""
    hypervisor: type[BadHypervisor] = BadHypervisor


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
        if not _may_refuse(setting):
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
        threads = 1 if setting.smt_off else product.threads_per_core
        product = replace(product, ciphers=setting.ciphers or product.ciphers, threads_per_core=threads)
        cards = setting.cards or setting.platform.cards
        platform = replace(setting.platform, mode=protection.mode, cards=cards)
        if setting.old_firmware:
            old = old_level(product)
            platform = replace(platform, firmware_api=old.version, firmware_tcb=old.tcb)
        agents = setting.moves and CAPABILITIES[protection.launched].rmp
        platform = replace(platform, migration_agent=agents or platform.migration_agent)
        spec = HostSpec("host", product, HOST_BYTES, product.min_sev_asid, SEED, 60 * 10**9, platform=platform)
        images, skips = {"auto": IMAGE}, frozenset() if setting.svsm_zeroes else _SVSM_AS_IT_WAS

        def made(one: HostSpec) -> Host:
            hypervisor = partial(cast.hypervisor, Orders(setting.prelude, GUEST_BYTES, setting.snp_policy))
            tenants = local_tenants(PROGRAMS, skips)
            host = Host(one, PROGRAMS, images, dict(load_cost_table()), tenants, hypervisor, transcript.observe)
            host.board.psp.legacy.migration.trusted_ark = lambda: _ark(product.line.name)
            host.board.agents.verifies_peer = setting.agent_verifies_peer
            host.board.agents.keeps_ledger = setting.agent_keeps_ledger
            return host

        self.host = made(spec)
        self._depositor: Depositor | None = None
        self._svsm = setting.svsm and CAPABILITIES[protection.launched].rmp
        self._transcript = transcript
        kernel = KernelSettings(
            tracks_validation=cast.tracks_validation or setting.tracks_validation,
            checks_sev_status=setting.checks_sev_status,
            checks_c_bit=setting.checks_c_bit,
            reads_cpuid_page=setting.reads_cpuid_page,
            checks_cpuid=setting.checks_cpuid,
            checks_jump_table=setting.checks_jump_table,
            checks_answers=setting.checks_answers,
            checks_exit_code=setting.vc_handler_verifies or setting.victim != "keeper",
            checks_carry=setting.checks_carry or setting.victim != "grower",
            handles_vc=setting.victim != "service",
        )
        service = _service(setting, protection.launched)
        wanted = ordered(protection.launched, kernel, service)
        ways = _ways(setting)
        wanted["depositor"] = ProgramSpec("depositor", tuple(asdict(ways).items()))
        self._hypervisor.tio.lock_flags = LockFlags(ways.lock_flags)
        devices = (CardKind.GPU,) if setting.cards or setting.victim == "depositor" else ()
        has_tables = setting.page_tables or setting.two_processes
        if has_tables:
            own_key = _has_own_key(protection.launched)
            wanted["vault"] = ProgramSpec("vault", ((vault.C_BIT, 1 << product.c_bit if own_key else 0),))
        self.counter: ExternalCounter | None = None
        wanted["counted"] = ProgramSpec("counted", ((ASKS, int(setting.external_counter)),))
        if setting.external_counter and setting.victim == "counted":
            self.counter = ExternalCounter(Counted(memory_map(GUEST_BYTES, 1).placement(VICTIM, 0, SEED)).key)
        program = ProgramSpec("colluder") if self._svsm else wanted[setting.victim]
        vcpus, features = 1 + setting.two_processes, setting.sev_features
        self._launch(
            VICTIM, protection.launched, program, vcpus, kernel, features, svsm=self._svsm, devices=devices,
            sev_policy=setting.sev_policy, migration_agent=agents,
        )  # fmt: skip
        self._hypervisor.let_go()
        tenant = ProgramSpec("vault", ((vault.SPINS, int(setting.tenant_spins)),))
        trusts = setting.tenant_has_card and CAPABILITIES[protection.launched].trusted_devices
        self._launch(TENANT, protection.launched, tenant, 1, CAREFUL, devices=(CardKind.GPU,) if trusts else ())
        self._tenant = self._placement_of_tenant() if trusts else None
        if has_tables:
            for vcpu in range(vcpus):
                own = Vault(memory_map(GUEST_BYTES, vcpus).placement(VICTIM, vcpu, SEED))
                ledger.map(VICTIM, vcpu, vault.VALUE_GVA, PAGE_BYTES, own.private(vault.VALUE))
        place = memory_map(GUEST_BYTES, 1).placement(VICTIM, 0, SEED)
        secretive = not setting.open_without_key or _has_own_key(protection.launched)
        if self._svsm:
            ledger.distrust_above(VICTIM, 0)
            ledger.keep(VICTIM, "the seed of its vTPM", vtpm_seed(VICTIM, SEED))
        elif setting.victim == "service":
            victim = Service.build(service, place)
            ledger.keep(VICTIM, "the secret", victim.secret)
            for gpa, octets in victim.promises.items():
                ledger.promise(VICTIM, gpa, octets)
            ledger.count_up(VICTIM, victim.round_cell)
        elif setting.victim == "grower":
            grower = Grower.build(wanted["grower"], place)
            ledger.promise(VICTIM, grower.book, grower.entries)
        elif setting.victim == "caller":
            for gpa, octets in Caller(place).promises.items():
                ledger.promise(VICTIM, gpa, octets)
        elif setting.victim == "petitioner":
            for gpa, octets in Petitioner(place).promises.items():
                ledger.promise(VICTIM, gpa, octets)
        elif setting.victim == "console":
            ledger.keep(VICTIM, "what was typed", Console(place).typed)
        elif setting.victim == "depositor":
            trusts = CAPABILITIES[protection.launched].trusted_devices
            there = replace(place, bounces=_has_own_key(protection.launched), trusts_devices=trusts)
            self._enter_depositor(ledger, Depositor(there, ways))
        elif setting.victim == "chooser":
            ledger.decide(VICTIM, Chooser(place).decisions)
        else:
            ledger.decide(VICTIM, [_vault(VICTIM).decision(number) for number in range(1, vault.DECISIONS + 1)])
            kept = replace(_vault(VICTIM), c_bit=0 if has_tables else None).content(vault.SECRET)
            if secretive:
                ledger.keep(VICTIM, "the secret", kept)
        ledger.keep(VICTIM, "what its owner sends it", SECRET)
        if setting.victim == "counted":
            ledger.count_up(VICTIM, Counted(place).number)
        if setting.outbox_is_secret:
            ledger.keep(VICTIM, "what it hands to its device", _vault(VICTIM).content(vault.ANSWER))
            ledger.entrust(VICTIM, _vault(VICTIM).shared(vault.OUTBOX), PAGE_BYTES)
        keys = self.host.board.psp.legacy.keys
        if setting.platform_key and keys.pdh_seed:
            scalar = keys.pdh_key.private_numbers().private_value
            ledger.keep(VICTIM, "the scalar of its platform's PDH", scalar.to_bytes(COORDINATE_BYTES, "big"))
        if setting.victim == "newcomer":
            secret, canary = _vault(VICTIM).private(vault.SECRET), newcomer.canary_gpa(place)
            ledger.map(VICTIM, 0, secret, PAGE_BYTES, secret)
            for view in (0, SHARED_VIEW):
                # Where it tries the C-bit out lies no memory that it uses.
                ledger.map(VICTIM, 0, view + canary, PAGE_BYTES, _NOWHERE)
        if setting.victim == "booted":
            ledger.lay(VICTIM, IMAGE.gpa, IMAGE.data)
            measured = bytes.fromhex(self.host.guests[VICTIM].launch_digest)
            expected = expected_measurement(protection.launched, product.name)
            if setting.owner.measurement and measured and measured != expected:
                transcript.complain(VICTIM, "measurement: another launch than its owner's")
        given = self._hypervisor.tio.given(VICTIM, guest_device_id(DEVICE))
        if ways.awaits and given is not None:
            self.host.board.execute_host(interrupts_on(given.function))
        self.let_run(self.host.guests[VICTIM])
        if not setting.tenant_spins:
            self.let_run(self.host.guests[TENANT])
        self.target = self._look_up()
        outside = Outside(spec, self.host.board, protection.launched, setting.owner, VICTIM, transcript)
        elsewhere = partial(made, replace(spec, name="other host", seed=SEED + 1))
        self.moves = MoveHands(self.host, self.target.victim, elsewhere, self._let_run_there)
        moves = self.moves if setting.moves else None
        self._hands = Hands(self.host.board, TENANT, transcript, self._keep_books, outside, moves)

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
        return self._let_run(self.host, guest)

    def _let_run_there(self, host: Host) -> None:
        self._let_run(host, host.guests[VICTIM])

    def _let_run(self, host: Host, guest: Guest) -> tuple[Answer, ...]:
        self._until_it_rests(host, guest)
        if self.counter is not None and guest.spec.name == VICTIM and _asks(guest):
            self._carry(host, self.counter)
            self._until_it_rests(host, guest)
        return ()

    def _carry(self, host: Host, counter: ExternalCounter) -> None:
        """What the victim asks the counter, and what that answers, as whoever runs the host carries it."""
        record, place = _books(host).launched(VICTIM), _vault(VICTIM)
        outbox, inbox = record.spa_of(place.shared(vault.OUTBOX)), record.spa_of(place.shared(vault.INBOX))
        (question,) = host.board.execute_host((HostRead(outbox, QUESTION_BYTES),))
        if isinstance(question, bytes):
            host.board.execute_host((HostWrite(inbox, counter.answer(question)),))

    def _until_it_rests(self, host: Host, guest: Guest) -> None:
        if guest.spec.name not in host.board.vmcbs:
            return
        env = host.clock.env
        before = [_rest(vcpu) for vcpu in guest.vcpus]
        until = env.now + _PATIENCE_NS
        while guest.state is GuestState.RUNNING and guest.vcpus[0].state not in _OUT:
            if env.peek() > until:
                self._transcript.stalled(guest.spec.name)
                break
            env.step()
            if all(_rest(vcpu) not in (None, last) for vcpu, last in zip(guest.vcpus, before, strict=True)):
                break
        # Whoever rents the VM learns with what code its program ended it, with a GHCB or without.
        if guest.spec.name == VICTIM and guest.state is GuestState.STOPPED:
            noticed = NOTICED if self._depositor else COUNTED_NOTICED if self.counter else {}
            why = noticed.get(guest.shutdown_code)
            if why is not None:
                self._transcript.complain(VICTIM, f"{VICTIM} ended itself: {why}")

    # Setting up.

    def _keep_books(self, one: BookOperation) -> None:
        record = self._hypervisor.launched(VICTIM)
        if isinstance(one, TellDr7):
            record.dr7[record.seat(0)] = one.value
        else:
            record.smashed.add(one.spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES)

    @property
    def _hypervisor(self) -> BadHypervisor:
        return _books(self.host)

    def _launch(
        self, name: str, generation: Generation, program: ProgramSpec, vcpus: int, kernel: KernelSettings,
        sev_features: int = 0, *, svsm: bool = False, devices: tuple[CardKind, ...] = (), sev_policy: int = 0,
        migration_agent: bool = False,
    ) -> None:
        spec = GuestSpec(
            name, generation, vcpus, GUEST_BYTES, program, SEED, sev_features=sev_features, svsm=svsm, kernel=kernel,
            devices=devices, sev_policy=sev_policy, migration_agent=migration_agent,
        )  # fmt: skip
        self.host.launch(spec, lambda _: None, running=True)
        assert self.host.guests[name].state is GuestState.RUNNING, self.host.guests[name].reason

    def _look_up(self) -> Target:
        """What the hypervisor's books say, and frames that it takes for the attack."""
        hypervisor = self._hypervisor
        frames = [hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(_SPARE_FRAMES + 1)]
        victim, tenant = (self._household(hypervisor, name) for name in (VICTIM, TENANT))
        return Target(
            victim, tenant, tuple(frames[1:]), frames[0], 1 << self.host.spec.product.c_bit, GHOST_LINE,
            free_asid=max(victim.asid, tenant.asid) + 1, ground=hypervisor.ground, card=self._card(hypervisor),
        )  # fmt: skip

    def _card(self, hypervisor: BadHypervisor) -> GivenCard | None:
        """What its books say of the victim's card."""
        given, record = hypervisor.tio.given(VICTIM, guest_device_id(DEVICE)), hypervisor.launched(VICTIM)
        if given is None:
            return None
        victim = self._depositor

        def page(gpa: int) -> Page:
            return Page(gpa, record.spa_of(gpa))

        places: tuple[Page, ...] = ()
        if victim is not None:
            outbox, inbox = (page(victim.buffer(number, bounces=victim.bounces)) for number in range(2))
            places = outbox, inbox, page(victim.idle)
        _, other = hypervisor.tio.cards
        return GivenCard(hypervisor.tio, given, record.gctx, other.physical, self._tenant, places)

    def _placement_of_tenant(self) -> Placement:
        """What the tenant's kernel hands its programs, if it is an SNP guest."""
        memory, secrets = memory_map(GUEST_BYTES, 1), IMAGE.secrets_gpa
        assert secrets is not None
        messages = MessagePlace(secrets, 0, 0, memory, self.host.guests[TENANT].launched)
        return memory.placement(TENANT, 0, SEED, messages=messages)

    def _enter_depositor(self, ledger: Ledger, victim: Depositor) -> None:
        """What is true of a victim that has a device: with as much memory as that of its own number has."""
        self._depositor = victim
        ledger.keep(VICTIM, "the secret", victim.secret)
        for gpa, octets in victim.promises(OWN_CARD.memory_bytes).items():
            ledger.promise(VICTIM, gpa, octets)
        for gpa, length in victim.device_writes():
            ledger.let_devices_write(VICTIM, gpa, length)
        ledger.entrust(VICTIM, *victim.lent)

    def _household(self, hypervisor: BadHypervisor, name: str) -> Household:
        record, program = hypervisor.launched(name), _vault(name)

        def page(gpa: int) -> Page:
            return Page(gpa, record.spa_of(gpa))

        above_svsm = self._svsm and name == VICTIM
        return Household(
            name, record.asid, record.gctx, record.handle, record.c_bit,
            secret=page(TPM_GPA if above_svsm else program.private(vault.SECRET)),
            value=page(colluder.SPARE_GPA if above_svsm else program.private(vault.VALUE)),
            other=page(program.private(vault.OTHER)),
            decision=page(program.private(vault.DECISION)),
            answer=page(program.private(vault.ANSWER)),
            request=page(program.private(vault.REQUEST)),
            code=page(program.private(vault.CODE)),
            inbox=page(program.shared(vault.INBOX)),
            outbox=page(program.shared(vault.OUTBOX)),
            stack=page(program.private(STACK)),
            save_area=record.save_areas[0],
            generation=record.generation.name,
            registers_in_the_clear=not CAPABILITIES[record.generation].encrypted_registers,
            doorbell=page(record.doorbells[0]) if 0 in record.doorbells else None,
        )  # fmt: skip


def _ways(setting: Setting) -> DepositorWays:
    """The victim's as its owner has it: who compares nothing of a device asks for no fresh evidence either."""
    ways, owner = setting.ways, setting.owner
    looks = {name: getattr(ways, name) * owner.device for name in _LOOKS}
    return replace(ways, checks_fresh=ways.checks_fresh * owner.device * owner.nonce, **looks)


def _service(setting: Setting, generation: Generation) -> ProgramSpec:
    """The victim that is attacked by events."""
    capabilities = CAPABILITIES[generation]
    settings = {
        HAS_GHCB: capabilities.encrypted_registers,
        REGISTERS_GHCB: capabilities.rmp,
        RESTRICTED: bool(setting.sev_features & SevFeature.RESTRICTED_INJECTION),
        NO_IA32: setting.disables_ia32,
        VERIFIES: setting.vc_handler_verifies,
    }
    return ProgramSpec("service", tuple((name, int(on)) for name, on in settings.items()))


_OUT = (VcpuState.PAUSED, VcpuState.HELD)
"""A victim whose vCPU is out goes on when its hypervisor wants it to."""


def _books(host: Host) -> BadHypervisor:
    assert isinstance(host.hypervisor, BadHypervisor)
    return host.hypervisor


def _asks(guest: Guest) -> bool:
    """Whether a victim waits for an answer of its counter's."""
    return guest.state is GuestState.RUNNING and guest.vcpus[0].registers.rip == HEAR_RIP


def _rest(vcpu: Vcpu) -> tuple[int, int] | None:
    """Since when a vCPU rests, and where it goes on; None if it does not rest."""
    return (vcpu.slept_from_ns, vcpu.registers.rip) if vcpu.state is VcpuState.SLEEPING else None


def _has_own_key(generation: Generation) -> bool:
    return CAPABILITIES[generation].key_per_vm


def _may_refuse(setting: Setting) -> bool:
    """Whether a firmware that is as it should be does not start SNP on what the attacker has made of the host."""
    platform = setting.platform
    if platform.ghost_line and platform.alias_check:
        return True
    return setting.prelude is not None and (platform.fabric_lock_checked or platform.iommu_write_safe)


def status_gpa() -> int:
    """Where the victim keeps its status."""
    return _vault(VICTIM).status


def code_gpa() -> int:
    """Where the victim keeps what it runs."""
    return _vault(VICTIM).private(vault.CODE)


def _ark(line: str) -> AmdCertificate:
    """The root that firmware is built with: finding its keys anew takes seconds."""
    return product_root(line).amd_certificate(KeyUsage.ARK)


def _vault(name: str) -> Vault:
    return Vault(memory_map(GUEST_BYTES, 1).placement(name, 0, SEED))
