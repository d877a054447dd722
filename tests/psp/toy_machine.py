"""A toy machine for the security processor: DRAM and RMP as dictionaries."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field

from psp import command_buffers as buffers
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.commands import LegacyCommand, SnpCommand
from psp.core_permits import CorePermits
from psp.firmware import SecurityProcessor
from psp.guest_context import GuestContext, SnpGuestState
from psp.guest_requests import GuestRequests
from psp.key_messages import KeyMessages
from psp.launch_digest import LaunchDigest, LegacyLaunchDigest, PageType
from psp.legacy_guest import LegacyGuestState
from psp.migration_messages import MigrationMessages
from psp.nv_storage import NvFile
from psp.product_line import PRODUCT_LINES
from psp.report_messages import ReportMessages
from psp.snp_configuration import SnpConfiguration
from psp.snp_guests import SnpGuests
from psp.system_bus import (
    LARGE_PAGE_BYTES,
    CoreConfiguration,
    CpuidFacts,
    IommuConfiguration,
    MachineFacts,
    RmpEntry,
    RmpPlacement,
    RmpRegisters,
)
from psp.tsm.device_link import DeviceLink
from psp.tsm.security_manager import TeeSecurityManager
from psp.tsm.spdm_loop import Pending
from psp.tsm.trusted_io import TrustedIo

PAGE = 4096
MEMORY_BYTES = 1 << 24
UNCOVERED = MEMORY_BYTES - PAGE
"""The last page has no RMP entry."""
_ZEROS = bytes(PAGE)
RMP_SPA, RMP_BYTES = 0xE0_0000, 1 << 20
_PLACEMENT = RmpPlacement(((RMP_SPA, RMP_BYTES),), covers_itself=True)
_IOMMU = IommuConfiguration(enabled=True, supports_snp=True, buffers=())


@dataclass
class ToyBus:
    """Memory of 16 MiB; an encrypted page is its bytes XOR a pad of the key, so that tests can see through it."""

    max_asid: int = 8
    min_sev_asid: int = 5
    dram_bytes: int = MEMORY_BYTES
    hardware_threads: int = 32
    only_on: dict[int, frozenset[int]] = field(default_factory=dict)
    memory_key_bytes: int = 16
    cpuid_facts: CpuidFacts = CpuidFacts(c_bit=51, reduced_bits=5, address_bits=48)  # noqa: RUF009  # frozen
    machine_facts: MachineFacts = MachineFacts(0x00A00F11, 2_000_000, smt=True, tsme=False, ecc=True)  # noqa: RUF009
    pages: dict[int, bytes] = field(default_factory=dict)
    rmp: dict[int, RmpEntry] = field(default_factory=dict)
    keys: dict[int, bytes] = field(default_factory=dict)
    wbinvds: int = 0
    can_hide_ciphertext: bool = False
    hidden_up_to: int = 0
    power_readings_disabled: bool = False
    sealed: dict[int, bytes] = field(default_factory=dict)
    """Save areas by SPA, as they read through their guest's key when they were sealed."""
    cores: CoreConfiguration = field(
        default_factory=lambda: CoreConfiguration(
            snp_enabled=True,
            mtrr_fix_dram_mod_enabled=True,
            hsave_pa_zero=True,
            smt_enabled=True,
            rmp=(RmpRegisters(RMP_SPA, RMP_SPA + RMP_BYTES - 1),),
        )
    )
    placement: RmpPlacement | None = _PLACEMENT
    iommu: IommuConfiguration = _IOMMU
    enforced: bool = False
    region: tuple[int, int] = (0, 0)
    locked: bool = True
    trusted_io: TrustedIo | None = None

    def core_configuration(self) -> CoreConfiguration:
        return self.cores

    def hide_ciphertext(self, max_snp_asid: int) -> None:
        self.hidden_up_to = max_snp_asid

    def disable_power_readings(self, *, disabled: bool) -> None:
        self.power_readings_disabled = disabled

    def read(self, spa: int, length: int) -> bytes:
        assert 0 <= spa <= self.dram_bytes - length, "the firmware must check every address first"
        first, last = spa // PAGE, (spa + length - 1) // PAGE
        whole = b"".join(self.pages.get(page, _ZEROS) for page in range(first, last + 1))
        return whole[spa % PAGE : spa % PAGE + length]

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """In every other 64 KiB there is one, as on a board."""
        return (b"before" + self.read(spa, length) + b"after", 6) if spa >> 16 & 1 else None

    def write(self, spa: int, data: bytes) -> None:
        assert 0 <= spa <= self.dram_bytes - len(data), "the firmware must check every address first"
        at = 0
        while at < len(data):
            page, offset = divmod(spa + at, PAGE)
            piece = data[at : at + PAGE - offset]
            old = self.pages.get(page, _ZEROS)
            self.pages[page] = old[:offset] + piece + old[offset + len(piece) :]
            at += len(piece)

    def _pad(self, asid: int, length: int) -> int:
        return int.from_bytes(hashlib.shake_128(self.keys[asid]).digest(length))

    def read_guest(self, spa: int, length: int, asid: int) -> bytes:
        if length > PAGE and not (spa | length) % PAGE:
            return b"".join(self.read_guest(spa + at, PAGE, asid) for at in range(0, length, PAGE))
        return (int.from_bytes(self.read(spa, length)) ^ self._pad(asid, length)).to_bytes(length)

    def write_guest(self, spa: int, data: bytes, asid: int) -> None:
        if len(data) > PAGE and not (spa | len(data)) % PAGE:
            for at in range(0, len(data), PAGE):
                self.write_guest(spa + at, data[at : at + PAGE], asid)
            return
        self.write(spa, (int.from_bytes(data) ^ self._pad(asid, len(data))).to_bytes(len(data)))

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        self.write_guest(spa, self.read(spa, length), asid)

    def core_complex(self, apic_id: int) -> int:
        return apic_id // 8

    def run_only_on(self, asid: int, complexes: frozenset[int] | None) -> None:
        self.only_on.pop(asid, None)
        if complexes is not None:
            self.only_on[asid] = complexes

    def take_trusted_region(self, spa: int, length: int) -> None:
        self.region = (spa, length)

    def give_back_trusted_region(self) -> None:
        self.region = (0, 0)

    def seal_save_area(self, spa: int, asid: int) -> None:
        self.sealed[spa] = self.read_guest(spa, PAGE, asid)

    def save_area_is_sealed(self, spa: int, asid: int) -> bool:
        return self.sealed.get(spa) == self.read_guest(spa, PAGE, asid)

    def install_key(self, asid: int, key: bytes) -> None:
        self.keys[asid] = key

    def remove_key(self, asid: int) -> None:
        self.keys.pop(asid, None)

    def wbinvd_count(self) -> int:
        return self.wbinvds

    def fabric_locked(self) -> bool:
        return self.locked

    def rmp_placement(self) -> RmpPlacement | None:
        return self.placement

    def iommus(self) -> tuple[IommuConfiguration, ...]:
        return (self.iommu,)

    def iommus_enforce(self) -> None:
        self.enforced = True

    def iommus_release(self) -> None:
        self.enforced = False

    def rmp_covers(self, spa: int, pages: int = 1) -> bool:
        return 0 <= spa <= UNCOVERED - pages * PAGE if pages > 1 else 0 <= spa < UNCOVERED

    def rmp_initialise(self) -> None:
        self.rmp.clear()

    def rmp_entry(self, spa: int) -> RmpEntry:
        assert self.rmp_covers(spa), "the firmware must ask whether there is an entry"
        large = self.rmp.get(spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES // PAGE)
        return large if large is not None and large.large else self.rmp.get(spa // PAGE, RmpEntry())

    def rmp_run(self, spa: int, pages: int) -> RmpEntry | None:
        if not self.rmp_covers(spa):
            return None
        first = self.rmp_entry(spa)
        whole = spa + pages * PAGE <= UNCOVERED
        following = (dataclasses.replace(first, gpa=first.gpa + at * PAGE * (first.asid > 0)) for at in range(pages))
        same = whole and all(self.rmp_entry(spa + at * PAGE) == one for at, one in enumerate(following))
        return first if same and not first.large else None

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        assert spa % (LARGE_PAGE_BYTES if entry.large else PAGE) == 0
        self.rmp[spa // PAGE] = entry

    def rmp_set_pages(self, spa: int, length: int, entry: RmpEntry) -> None:
        for page in range(spa, spa + length, PAGE):
            self.rmp_set(page, dataclasses.replace(entry, gpa=entry.gpa + page - spa if entry.asid else entry.gpa))

    def rmp_pages_of_asid(self, asid: int) -> int:
        return sum(entry.assigned and entry.asid == asid for entry in self.rmp.values())


def _frozen(value: object) -> object:
    """A value all the way down, so that a change anywhere in it shows."""
    match value:
        case LaunchDigest() | LegacyLaunchDigest():
            return value.value
        case AsidFlush():
            return tuple((name, _frozen(part)) for name, part in sorted(vars(value).items()) if name != "_bus")
        case SnpConfiguration():
            return value.flags, value.vlek
        case NvFile():
            return value.address
        case CorePermits():
            return tuple(sorted((asid, tuple(sorted(them))) for asid, them in value._complexes.items()))
        case ReportMessages():
            return value.forced_version
        case KeyMessages():
            return value.root_tcb
        case MigrationMessages():
            kept = {"rows", "_bus", "_guests", "_policies", "_random", "_firmware"}
            kept |= {"export_wants_imi", "absorbing_alone_wants_leave"}
            assert set(vars(value)) == kept
            return value.export_wants_imi, value.absorbing_alone_wants_leave
        case GuestRequests():
            assert set(vars(value)) == {"switches", "_memory", "_guests", "_rows"}
            return value.switches
        case AsidRanges():
            return value.max_snp_asid
        case SnpGuests():
            # All that firmware keeps of SNP guests; whatever else it knows of one lies in DRAM.
            kept = {"tweaked", "has_mac", "spas", "_bus", "_random", "_key", "_ciphers", "_mac_key"}
            assert set(vars(value.pages)) == kept
            ours = {"_bus", "_memory", "_flush", "_ranges", "_permits", "before_decommission"}
            assert set(vars(value)) == {"pages", "_active"} | ours
            return value.pages.tweaked, tuple(value.pages.spas), sorted(value._active)
        case TeeSecurityManager():
            kept = {"enabled", "initialised", "contexts", "tdi_switches", "device_switches", "message_switches"}
            devices = value.contexts.devices
            assert set(vars(value.contexts)) == {"devices", "_reports", "_bus", "_memory", "_random"}
            assert {name for name in vars(value) if not name.startswith("_")} - {"handlers"} <= kept
            return value.enabled, value.initialised, value.contexts._reports, _frozen(devices)
        case DeviceLink():
            # Of a session that goes on: how many messages went by, and with which keys.
            session = value.session
            counts = session.requests.sequence, session.responses.sequence
            return id(session), counts, value.key_set, value.broken, _frozen(value.streams), _frozen(value.ports)
        case Pending():
            return value.command, value.order, id(value.steps), value.asked, value.result
        case dict():
            return tuple((key, _frozen(value[key])) for key in sorted(value))
        case set():
            return frozenset(value)
        case _ if dataclasses.is_dataclass(value):
            return tuple(_frozen(getattr(value, part.name)) for part in dataclasses.fields(value))
        case _:
            return value


@dataclass
class Machine:
    """A toy bus, the processor on it, and a driver's habits."""

    bus: ToyBus
    psp: SecurityProcessor

    def call(self, command: int, buffer: bytes = b"", spa: int = 0x1000) -> int:
        """Lay a buffer and ring the mailbox."""
        self.bus.write(spa, buffer)
        return int(self.psp.submit(command, spa))

    def flush(self, command: int) -> None:
        """WBINVD, then DF_FLUSH of one interface."""
        self.bus.wbinvds += 1
        assert self.call(command) == 0

    def firmware_state(self) -> dict[str, object]:
        """Everything the firmware knows."""
        legacy, snp = self.psp.legacy, self.psp.snp
        ours = {"_bus", "_memory", "_random", "_firmware", "_legacy_is_up", "handlers"}
        ours |= {"_launch", "migration", "launch_runs", "_mitigation", "swap"}
        state = {
            f"{name}.{key}": _frozen(value)
            for name, part in (("legacy", legacy), ("snp", snp))
            for key, value in vars(part).items()
            if key not in ours
        }
        keys = legacy.keys
        state["legacy.keys"] = (keys.chip._fuses, keys.oca_seed, keys.pek_seed, keys.pdh_seed, keys.owner)
        state["handles"] = legacy._launch._last_handle
        state["firmware"] = _frozen(self.psp.firmware)
        return {**state, "drawn": _frozen(self.psp._drawn), "firmware pages": _frozen(vars(self.psp._pages))}

    def snapshot(self) -> dict[str, object]:
        """Everything that a refused command must leave alone."""
        pages = {page: octets for page, octets in self.bus.pages.items() if octets != _ZEROS}
        machine = {"DRAM": pages, "RMP": dict(self.bus.rmp), "keys": dict(self.bus.keys)}
        values = {"region": self.bus.region, "seals": dict(self.bus.sealed), "cores": dict(self.bus.only_on)}
        return {**self.firmware_state(), **machine, "hidden": self.bus.hidden_up_to, **values}


def context(machine: Machine, gctx: int = 0x60_0000) -> GuestContext:
    """What a Context page says."""
    return machine.psp.snp.guests.pages.read(gctx)


def change_context(machine: Machine, gctx: int = 0x60_0000, **changes: object) -> None:
    """Have a Context page say something else, as no command would."""
    machine.psp.snp.guests.pages.write(gctx, dataclasses.replace(context(machine, gctx), **changes))  # type: ignore[arg-type]


def new_machine(line: str = "Genoa") -> Machine:
    """A machine that has just been switched on."""
    bus = ToyBus()

    def octets(purpose: str, counter: int, length: int) -> bytes:
        return hashlib.shake_128(f"{purpose} {counter}".encode()).digest(length)

    return Machine(bus, SecurityProcessor(bus, octets, line=PRODUCT_LINES[line]))


# Machines at work.

GCTX, GUEST_PAGE, OUT = 0x60_0000, 0x20_0000, 0x40_0000
POLICY = 0x3_0000
FIRMWARE = RmpEntry(assigned=True, immutable=True)
COMMAND_PAGE = 0x1000


def up(*, snp: bool = True, legacy: bool = True, line: str = "Genoa") -> Machine:
    machine = new_machine(line)
    if snp:
        assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == 0
        machine.flush(SnpCommand.DF_FLUSH)
    if legacy:
        assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == 0
        machine.flush(LegacyCommand.DF_FLUSH)
    return machine


def returning(machine: Machine, command: int, buffer: bytes) -> tuple[int, bytes]:
    """A command whose buffer firmware writes, on a page that is firmware's."""
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    status = machine.call(command, buffer)
    machine.bus.rmp.pop(COMMAND_PAGE // PAGE)
    return status, machine.bus.read(COMMAND_PAGE, len(buffer))


def snp_guest(machine: Machine, state: SnpGuestState = SnpGuestState.LAUNCH, asid: int = 2) -> Machine:
    """A guest context taken to a state, active from LAUNCH on."""
    machine.bus.rmp_set(GCTX, FIRMWARE)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(GCTX).pack()) == 0
    if state >= SnpGuestState.LAUNCH:
        assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, POLICY).pack()) == 0
        assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, asid).pack()) == 0
    if state >= SnpGuestState.RUNNING:
        assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(GCTX).pack()) == 0
    return machine


def pre_guest(machine: Machine, page: bytes = bytes(PAGE), gpa: int = 0x5000, **changes: object) -> None:
    entry = {"assigned": True, "immutable": True, "gpa": gpa, "asid": 2, "vmpl_permissions": (15, 0, 0, 0), **changes}
    machine.bus.write(GUEST_PAGE, page)
    machine.bus.rmp_set(GUEST_PAGE, RmpEntry(**entry))  # type: ignore[arg-type]


def update(machine: Machine, page_type: int = PageType.NORMAL, address: int = GUEST_PAGE) -> int:
    return int(machine.call(SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate.of(GCTX, page_type, address).pack()))


def sev_guest(machine: Machine, state: LegacyGuestState = LegacyGuestState.LUPDATE, asid: int = 6) -> int:
    status, buffer = returning(machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack())
    assert status == 0
    handle = buffers.LaunchStart.parse(buffer).handle
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack()) == 0
    if state >= LegacyGuestState.LSECRET:
        machine.bus.rmp_set(OUT, FIRMWARE)
        measure = buffers.LaunchMeasure(handle, OUT, 48).pack()
        assert returning(machine, LegacyCommand.LAUNCH_MEASURE, measure)[0] == 0
    if state >= LegacyGuestState.RUNNING:
        assert machine.call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(handle).pack()) == 0
    return handle
