"""A scenario: the hosts of a fleet, the virtual machines that come, and for how long we watch.

Scenario files are TOML with units people write, and are parsed as hostile:
whatever is wrong with one becomes a ``ScenarioError`` of one line that names
file, field and expectation. Everything here is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationError, WithJsonSchema

from cluster.errors import UserError
from cluster.scenario_faults import FaultPlan
from cluster.scenario_fields import LARGEST_COUNT, Count, Name, PathText, ScenarioPart, refuse
from cluster.scenario_firmware import FirmwareUpdatePlan, TcbText, VersionText, levels_of, version_of
from cluster.scenario_kernel import KernelTable
from cluster.scenario_keys import KeyServiceSettings
from cluster.scenario_migration import DrainPlan, FabricSettings, MigrationPlan, MigrationSettings
from cluster.scenario_text import read_toml, write_toml
from cluster.units import Duration, Size, shown
from node.agent_messages import floor_data
from node.asid_pool import ASID_KINDS
from node.card_slot import MOST_VIRTUAL, CardSlot
from node.generation import Generation
from node.identity_cache import IdentityCache
from node.platform import NO_FLOOR, HostMode, Platform
from node.product import PRODUCTS, Product
from node.program import ProgramSpec, Scalar
from psp.installed_firmware import TcbOf
from psp.key_messages import RootTcb
from tio.device_identity import CardKind
from workloads.attested_start import wrapped
from workloads.library import NETWORKED, WORKLOADS

SCHEMA_VERSION = 1
MEMORY_DISK = "memory"
"""What stands in place of a path for a disk that is empty at first."""
HOST_MODEL = "host"
"""What stands in place of a processor's name for a VM that is shown its host's."""


class ScenarioError(UserError):
    """A scenario that cannot be run: the file, the field, what was expected and what was there."""

    def __init__(self, file: str, field: str, expected: str, got: str) -> None:
        where = f"{file}: {field}" if field else file
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.file = file
        self.field = field
        self.expected = expected
        self.got = got

    def in_file(self, file: str) -> ScenarioError:
        """The same finding, named after the file it was made in."""
        return ScenarioError(file, self.field, self.expected, self.got)


def _schema_version(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value == SCHEMA_VERSION:
        return value
    raise refuse(f"schema version {SCHEMA_VERSION}, the one this sevfleet reads")


def _product(value: object) -> str:
    if isinstance(value, str) and value in PRODUCTS:
        return value
    raise refuse(f"one of the products {', '.join(PRODUCTS)}")


def _workload(value: object) -> str:
    if isinstance(value, str) and value in WORKLOADS:
        return value
    raise refuse(f"one of the workloads {', '.join(WORKLOADS)}")


def _generation(value: object) -> Generation:
    """``SEV_SNP``, or ``sev-snp`` as the command line has it."""
    name = value.name if isinstance(value, Generation) else str(value).upper().replace("-", "_")
    if name not in Generation.__members__:
        raise refuse(f"one of the generations {', '.join(Generation.__members__)}")
    return Generation[name]


def _card_kind(value: object) -> CardKind:
    if isinstance(value, CardKind):
        return value
    if value in [one.value for one in CardKind]:
        return CardKind(value)
    raise refuse(f"one of the cards {', '.join([one.value for one in CardKind])}")


def _scalar(value: object) -> Scalar:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise refuse("a number or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise refuse("a finite number")
    return value


def _flat(value: object) -> object:
    """Dotted keys are nested tables to TOML, and the cost table's names have dots: ``core.exit_ns = 900``."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[object, object] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= {f"{key}.{name}": figure for name, figure in inner.items()}
        else:
            flat[key] = inner
    return flat


def _choice(names: list[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": names})


GenerationName = Annotated[Generation, BeforeValidator(_generation), _choice(list(Generation.__members__))]
CardKindName = Annotated[CardKind, BeforeValidator(_card_kind), _choice([one.value for one in CardKind])]
Parameter = Annotated[Scalar, BeforeValidator(_scalar), WithJsonSchema({"type": ["number", "string"]})]


class CardGroup(ScenarioPart):
    """Cards in a host's slots that are alike."""

    kind: CardKindName
    """What they are."""
    count: Count = 1
    memory: Size = 16 << 20
    """What each has of its own: a GPU's memory, a disk's medium; a power of two."""
    virtual_functions: Annotated[int, Strict(), Field(ge=0, le=MOST_VIRTUAL)] = 0
    """Functions that VMs are given instead of the card itself, each as large as it; 0: the card."""
    disk: PathText = MEMORY_DISK
    """What is below the medium of NVMe cards: ``memory``, zeros at first, or a file, as a path, that is only read and
    gives them its size."""
    tee_io: Annotated[bool, Strict()] = True
    """Whether they have TEE-IO; a guest that trusts devices uses one without it over bounce buffers."""


class HostGroup(ScenarioPart):
    """Hosts that are alike."""

    name: Name
    product: Annotated[str, BeforeValidator(_product), _choice(list(PRODUCTS))]
    """A line of AMD EPYC processors."""
    count: Count = 1
    memory: Size
    """DRAM of each host; a multiple of 2 MiB."""
    min_sev_asid: Annotated[int, Strict(), Field(ge=1)] | None = None
    """First ASID for SEV guests; those below it are for SEV-ES and SEV-SNP. Default: the product's."""
    mode: Literal["none", "sme", "tsme"] = "none"
    """How each host encrypts memory of its own: not; by the C-bit, as SME machines need it; or all of it."""
    ciphertext_hiding: Annotated[int, Strict(), Field(ge=1)] | None = None
    """Hide the ciphertext of SEV-SNP guests from the host: the last ASID for them, the rest is left to SEV-ES."""
    double_backing: Annotated[bool, Strict()] = False
    """Each host keeps shared memory behind SEV-SNP guests' private, as early kernels do; the placement counts it."""
    numa_nodes: Literal[1, 2, 4] = 1
    """NUMA nodes that each host's socket is cut into; a machine whose memory is on several pays for the way."""
    migration_agent: Annotated[bool, Strict()] = False
    """Each host has a migration agent from its beginning on, with which SEV_SNP and SEV_TIO machines may move."""
    migration_agent_floor: TcbText | None = None
    """The lowest TCB of firmware that its agent takes machines from, such as ``snp=24,microcode=219``; its reports show
    that, and it meets no agent with another. Default: none."""
    firmware: VersionText | None = None
    """Version of the security processor's firmware that each host is switched on with. Default: the product's."""
    derived_keys: Literal["asked", "reported"] = "asked"
    """The TCB version whose chip key derived keys rest on, which nobody has published: what the guest asks for, or what
    the host reports, so that every seal breaks when that changes."""
    reports_signed_for: Literal["reported", "current"] = "reported"
    """The TCB version whose chip key signs reports. AMD says the reported one's; some hosts were found with the current
    one's, so that nobody can verify their reports while an update is not committed."""
    cards: tuple[CardGroup, ...] = ()
    """What is in the slots of each host, to be given to machines whole, or by virtual functions."""
    key_refresh: Duration = 0
    """After how long links of trusted cards in use get fresh keys, again and again; 0: never."""


class VmGroup(ScenarioPart):
    """Virtual machines that are alike."""

    name: Name
    count: Count = 1
    generation: GenerationName
    """How the guest is protected."""
    vcpus: Annotated[int, Strict(), Field(ge=1, le=1024)] = 1
    memory: Size
    """Guest memory of each; a multiple of 2 MiB."""
    workload: Annotated[str, BeforeValidator(_workload), _choice(list(WORKLOADS))]
    """What each vCPU runs."""
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """The workload's own settings."""
    arrival: Duration = 0
    """Virtual time at which the first of them is asked for."""
    arrival_spacing: Duration = 0
    """Time from each to the next."""
    lifetime: Duration | None = None
    """How long each is wanted, from its arrival. Default: to the end of the run, or until it shuts down."""
    start: Literal["launch", "running"] = "launch"
    """``launch``: through the security processor; ``running``: up when the run begins, at no cost in time."""
    firmware: PathText = "auto"
    """A firmware image, as a path; ``auto``: the OVMF image of this machine, or sevfleet's own."""
    disk: PathText = MEMORY_DISK
    """What is behind the disk of each: ``memory``, empty at first, or a file, as a path, that is only read."""
    svsm: Annotated[bool, Strict()] = False
    """An SVSM runs below it at VMPL0, and its kernel at VMPL2; SEV_SNP and SEV_TIO machines only."""
    devices: tuple[CardKindName, ...] = ()
    """Cards of its host's that each is given, in the order in which it knows them."""
    migration_agent: Annotated[bool, Strict()] = False
    """Its policy lets a migration agent move it, and its host's is its own; SEV_SNP and SEV_TIO machines only."""
    migration_handler: Annotated[bool, Strict()] = False
    """Its SVSM has a migration handler, which moves it while it runs; SEV_SNP and SEV_TIO machines with an SVSM. With
    a migration agent, too, that hands its identity over."""
    sev_policy: tuple[Literal["NOKS", "NOSEND", "DOMAIN", "SEV"], ...] = ()
    """Bits of its policy beyond NODBG, where no owner sets it: no shared key, no sending, only to platforms of this
    owner, only to platforms that AMD's root certifies; SEV and SEV_ES machines only."""
    cpu_model: Literal["host", "EPYC", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"] = "host"
    """The processor that each is shown: one of QEMU's models, by which it goes to every host that has what the model
    has; or ``host``, all that the host has which launches it, by which it goes to none with fewer features."""
    host: Name | None = None
    """The host it must run on, by name. Default: placed."""
    attest_to: Name | None = None
    """A machine with the workload relying-party, which each vCPU must have convinced before its work begins."""
    kernel: KernelTable = KernelTable()
    """How the guest's kernel accepts memory, and which of its checks it makes."""

    @property
    def program(self) -> ProgramSpec:
        """What each vCPU runs, as a specification."""
        proper = ProgramSpec(self.workload, tuple(sorted(self.parameters.items())))
        return proper if self.attest_to is None else wrapped(self.attest_to, proper)

    @property
    def networked(self) -> bool:
        """Whether its vCPUs have network cards."""
        return self.program.name in NETWORKED or CardKind.NIC in self.devices


class TraceMix(ScenarioPart):
    """Virtual machines taken from a trace of a real data centre, or from one made up in its manner."""

    source: PathText = "generated"
    """``generated``, or a folder with the tables tasks and fragments, as .parquet or .csv."""
    vms: Count
    """How many are taken."""
    generations: Annotated[
        dict[GenerationName, Annotated[int, Strict(), Field(ge=0, le=LARGEST_COUNT)]], Field(min_length=1)
    ]
    """The mix, as weights: ``{PLAIN = 1, SEV_SNP = 3}``."""
    max_vcpus: Annotated[int, Strict(), Field(ge=1, le=1024)] = 8
    """Larger machines of the trace are cut to this."""
    max_memory: Size = 4 << 30
    """Larger machines of the trace are cut to this; a multiple of 2 MiB."""
    time_scale: Annotated[float, Strict(), Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Virtual time that passes for a unit of the trace's time."""
    start: Duration = 0
    """Where in the trace the run begins, in the trace's time."""


@dataclass(frozen=True, slots=True)
class HostInstance:
    """One host of a scenario."""

    name: str
    group: HostGroup
    product: Product

    @property
    def memory_bytes(self) -> int:
        return self.group.memory

    @property
    def threads(self) -> int:
        """Hardware threads of the host."""
        return self.product.sockets * self.product.cores * self.product.threads_per_core

    @property
    def min_sev_asid(self) -> int:
        return self.product.min_sev_asid if self.group.min_sev_asid is None else self.group.min_sev_asid

    @property
    def platform(self) -> Platform:
        """How the host is set up."""
        version = None if self.group.firmware is None else version_of(self.group.firmware)
        floor = self.group.migration_agent_floor
        return Platform(
            HostMode(self.group.mode), max_snp_asid=self.group.ciphertext_hiding or 0, firmware_api=version,
            cards=self.cards, key_refresh_ns=self.group.key_refresh, derived_keys=RootTcb(self.group.derived_keys),
            reports_signed_for=TcbOf(self.group.reports_signed_for),
            numa_nodes=self.group.numa_nodes, migration_agent=self.group.migration_agent,
            migration_agent_floor=NO_FLOOR if floor is None else floor_data(levels_of(floor)),
        )  # fmt: skip

    @property
    def cards(self) -> tuple[CardSlot, ...]:
        """What is in its slots, from the first root port on."""
        slots = [one for one in self.group.cards for _ in range(one.count)]
        return tuple([
            CardSlot(
                port, one.kind, f"{self.name}.{port}", one.memory, one.virtual_functions, tee_io=one.tee_io,
                disk="" if one.disk == MEMORY_DISK else one.disk,
            )
            for port, one in enumerate(slots, start=1)
        ])  # fmt: skip

    @property
    def generations(self) -> frozenset[Generation]:
        """What machines the host can run: all of its product's, those of SME only with its mode."""
        return _generations(self.product.name, self.group.mode)

    def asids(self, generation: Generation) -> int | None:
        """How many guests of a generation have an ASID at once; None where they need none of their own."""
        pools = {
            Generation.SEV: self.product.max_asid - self.min_sev_asid + 1,
            Generation.SEV_SNP: self.group.ciphertext_hiding or self.min_sev_asid - 1,
        }
        return pools.get(ASID_KINDS.get(generation, generation))


@dataclass(frozen=True, slots=True)
class VmInstance:
    """One virtual machine of a scenario's groups."""

    name: str
    group: VmGroup
    arrival_ns: int


class Scenario(ScenarioPart):
    """A whole scenario, valid in itself: what it names exists and what it asks for fits."""

    schema_version: Annotated[int, BeforeValidator(_schema_version), WithJsonSchema({"const": SCHEMA_VERSION})] = Field(
        alias="schema"
    )
    """The version of this format."""
    name: Name
    description: Annotated[str, Strict(), Field(max_length=400)] = ""
    """One sentence for the list of scenarios."""
    seed: Annotated[int, Strict(), Field(ge=0, lt=1 << 63)] = 1
    """From which all randomness comes."""
    duration: Duration
    """Virtual time that is watched."""
    control_plane_latency: Duration = 1_000_000
    """The least time between two hosts' control planes; also how far hosts may run ahead of each other."""
    vcpu_overcommit: Annotated[float, Strict(), Field(gt=0, le=64, allow_inf_nan=False)] = 1.0
    """How many vCPUs the placement puts on each hardware thread."""
    hosts: Annotated[tuple[HostGroup, ...], Field(min_length=1)]
    vms: tuple[VmGroup, ...] = ()
    trace: TraceMix | None = None
    fabric: FabricSettings = FabricSettings()
    migration: MigrationSettings = MigrationSettings()
    key_service: KeyServiceSettings | None = None
    """From which hosts fetch certificates for guests that attest. Default: there is none."""
    migrations: tuple[MigrationPlan, ...] = ()
    drains: tuple[DrainPlan, ...] = ()
    firmware_updates: tuple[FirmwareUpdatePlan, ...] = ()
    attribute_neighbours: Annotated[bool, Strict()] = False
    """Keep books of the time that each machine's phases lose to each neighbour: the table neighbours."""
    faults: tuple[FaultPlan, ...] = ()
    costs: Annotated[
        dict[str, Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]],
        BeforeValidator(_flat),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": ["number", "object"], "minimum": 0}}),
    ] = Field(default_factory=dict)
    """Figures of the cost table, replaced."""
    cost_rows: PathText | None = None
    """A CSV file of figures measured on one's own hosts, as a path: name, value, unit, products, source, sweep."""

    @classmethod
    def load(cls, file: str | Path) -> Scenario:
        """Read a scenario file; paths inside it are taken from its folder. Raises ScenarioError."""
        path = Path(file)
        return cls.parse(read_toml(path, ScenarioError), str(file), path.parent)

    @classmethod
    def parse(cls, data: Mapping[str, object], file: str = "scenario", folder: Path | None = None) -> Scenario:
        """Make a scenario of TOML's values. Raises ScenarioError, never anything of pydantic's."""
        from cluster.scenario_checks import check, resolved  # noqa: PLC0415 - the checks stand on this file
        from cluster.scenario_findings import first_finding  # noqa: PLC0415

        try:
            scenario = cls.model_validate(data)
        except ValidationError as error:
            raise ScenarioError(file, *first_finding(error, cls, data)) from None
        scenario = resolved(scenario, folder or Path())
        try:
            check(scenario)
        except ScenarioError as error:
            raise error.in_file(file) from None
        return scenario

    def to_toml(self) -> str:
        """The scenario as a file; ``parse`` of it gives an equal one."""
        return write_toml(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def with_seed(self, seed: int) -> Scenario:
        """The same scenario with other random numbers."""
        if not 0 <= seed < 1 << 63:
            raise ScenarioError("scenario", "seed", "a whole number from 0 to 2^63 - 1", shown(seed))
        return self.model_copy(update={"seed": seed})

    @property
    def network_latency(self) -> int:
        """One way between two hosts for frames of guests, in nanoseconds."""
        return self.control_plane_latency if self.fabric.latency is None else self.fabric.latency

    @property
    def lookahead(self) -> int:
        """How far hosts may run ahead of each other, in nanoseconds: nothing reaches another one sooner."""
        talk = any(group.networked for group in self.vms)
        return min(self.control_plane_latency, self.network_latency) if talk else self.control_plane_latency

    @property
    def host_instances(self) -> tuple[HostInstance, ...]:
        """Every host, in the file's order."""
        return _host_instances(self.hosts)

    @property
    def vm_instances(self) -> tuple[VmInstance, ...]:
        """Every virtual machine of the groups, in the file's order; the trace's are not among them."""
        return _vm_instances(self.vms)


@lru_cache
def _generations(product: str, mode: str) -> frozenset[Generation]:
    known = PRODUCTS[product].generations
    return known if HostMode(mode) is HostMode.SME else known - {Generation.SME}


@lru_cache(maxsize=8)
def _host_instances(groups: tuple[HostGroup, ...]) -> tuple[HostInstance, ...]:
    return tuple(
        HostInstance(name, group, PRODUCTS[group.product])
        for group in groups
        for name in instance_names(group.name, group.count)
    )


def _vms_of(groups: tuple[VmGroup, ...]) -> tuple[VmInstance, ...]:
    return tuple([
        VmInstance(name, group, group.arrival + index * group.arrival_spacing)
        for group in groups
        for index, name in enumerate(instance_names(group.name, group.count))
    ])  # fmt: skip


_vm_instances = IdentityCache(_vms_of)
"""Their groups have parameters, which cannot be hashed."""


def instance_names(name: str, count: int) -> list[str]:
    """The names of a group's members: the group's own, or ``name-1`` and so on with equal widths."""
    if count == 1:
        return [name]
    width = len(str(count))
    return [f"{name}-{number:0{width}d}" for number in range(1, count + 1)]
