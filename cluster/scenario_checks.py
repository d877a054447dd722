"""What one field alone cannot show: names that exist, sizes that fit, times that agree.

Every check raises ``ScenarioError`` with the field's place in the file; the
caller names the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from cluster.entity import CONTROL
from cluster.scenario import (
    HOST_MODEL,
    MEMORY_DISK,
    HostGroup,
    HostInstance,
    Scenario,
    ScenarioError,
    TraceMix,
    VmGroup,
    VmInstance,
)
from cluster.scenario_costs import scenario_costs
from cluster.scenario_faults import MEANS_NOTHING, FaultPlan
from cluster.scenario_firmware import levels_of
from cluster.units import DURATION, SIZE, shown
from node.agent_transfer import BY_AGENT
from node.asid_pool import ASID_KINDS
from node.card_slot import MOST_PORTS
from node.cost_table import CostOverrideError
from node.cpu_model import features_shown, lacking
from node.disk_file import DiskFile, DiskFileError
from node.firmware_image import FirmwareImage, read_firmware_image
from node.firmware_levels import LEVELS
from node.generation import CAPABILITIES, Generation
from node.guest_memory_map import SMALLEST_GUEST_BYTES, SMALLEST_SLICE_BYTES, GuestMemoryMap
from node.operations import BLOCK_BYTES
from node.ovmf import FirmwareImageError
from node.product import PRODUCTS, Product
from node.sealed_transfer import SEALED
from node.svsm_memory import MOST_VCPUS, svsm_guest
from psp.verifier import LINES
from tio.device_identity import CardKind
from workloads.device_work import MOST_DEVICES
from workloads.library import DEVICE_WORK, WorkloadParameterError, footprint, validate_parameters

PAGE_2M = 2 << 20
SERVER, CLIENT, RELYING_PARTY = "key-value-server", "key-value-client", "relying-party"
LARGEST_FLEET = 1_000_000
LEAST_CARD_BYTES, MOST_CARD_BYTES = 1 << 20, 1 << 30

_Place = Callable[[str], str]
"""Names a field of the machine at hand."""

_ImageOf = Callable[[Path], FirmwareImage]
"""The firmware image in a file. Raises FirmwareImageError."""


def resolved(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with its paths made absolute, so that it means the same wherever it is read again."""

    def absolute(path: str, word: str) -> str:
        return path if path == word else os.path.realpath(folder / Path(path).expanduser())

    vms = tuple(vm.model_copy(update=_paths(vm, absolute)) for vm in scenario.vms)
    hosts = tuple(
        group.model_copy(update={"cards": tuple(
            one.model_copy(update={"disk": absolute(one.disk, MEMORY_DISK)}) for one in group.cards
        )})
        for group in scenario.hosts
    )  # fmt: skip
    trace = scenario.trace and scenario.trace.model_copy(
        update={"source": absolute(scenario.trace.source, "generated")}
    )
    rows = scenario.cost_rows and absolute(scenario.cost_rows, "")
    return scenario.model_copy(update={"hosts": hosts, "vms": vms, "trace": trace, "cost_rows": rows})


def _paths(vm: VmGroup, absolute: Callable[[str, str], str]) -> dict[str, str]:
    return {"firmware": absolute(vm.firmware, "auto"), "disk": absolute(vm.disk, MEMORY_DISK)}


def check(scenario: Scenario) -> None:
    """Raise ScenarioError for the first thing that does not agree with the rest."""
    _check_times(scenario)
    _check_hosts(scenario)
    _check_names(scenario)
    if not scenario.vms and scenario.trace is None:
        raise _wrong("vms", "at least one virtual machine, or a [trace]", "none")
    homes = {host.name: host for host in scenario.host_instances}
    image_of = cache(read_firmware_image)  # Many machines, one image.
    for index, vm in enumerate(scenario.vms):
        _check_vm(scenario, vm, index, homes, image_of)
    _check_servers(scenario)
    _check_relying_parties(scenario)
    _check_asids(scenario)
    _check_migrations(scenario)
    _check_updates(scenario)
    if scenario.trace is not None:
        _check_trace(scenario, scenario.trace)
    try:
        scenario_costs(scenario)
    except CostOverrideError as error:
        raise _wrong(f"costs.{error.name}", error.expected, error.got) from None


def _wrong(field: str, expected: str, got: str) -> ScenarioError:
    return ScenarioError("scenario", field, expected, got)


def _place(kind: str, index: int, field: str, name: str) -> str:
    return f"{kind}[{index}].{field} of {shown(name)}"


def _check_times(scenario: Scenario) -> None:
    for field, value in (
        ("duration", scenario.duration),
        ("control_plane_latency", scenario.control_plane_latency),
        ("fabric.latency", scenario.network_latency),
    ):
        if value == 0:
            raise _wrong(field, "more than no time", DURATION.format(value))


def _check_hosts(scenario: Scenario) -> None:
    for index, group in enumerate(scenario.hosts):
        product = PRODUCTS[group.product]
        place = _place("hosts", index, "memory", group.name)
        if not 0 < group.memory <= product.max_memory_bytes:
            most = SIZE.format(product.max_memory_bytes)
            raise _wrong(place, f"more than 0 and at most {most}, what {product.name} takes", SIZE.format(group.memory))
        _check_pages(place, group.memory)
        if group.min_sev_asid is not None and group.min_sev_asid > product.max_asid + 1:
            raise _wrong(
                _place("hosts", index, "min_sev_asid", group.name),
                f"at most {product.max_asid + 1}: {product.name} has {product.max_asid} ASIDs",
                str(group.min_sev_asid),
            )
        _check_hiding(index, group, product)
        if group.firmware is not None:
            _check_level(_place("hosts", index, "firmware", group.name), group.firmware, product)
        if group.migration_agent_floor is not None:
            _check_agent_floor(_place("hosts", index, "migration_agent_floor", group.name), group, product)
        _check_cards(index, group)


def _check_agent_floor(place: str, group: HostGroup, product: Product) -> None:
    found = f'"{group.migration_agent_floor}"'
    if not group.migration_agent:
        raise _wrong(place, "none without migration_agent", found)
    line = LINES.get(product.line.name)
    known = [] if line is None else [name for name, _ in line.layout.components]
    if not levels_of(group.migration_agent_floor or "").keys() <= set(known):
        raise _wrong(place, f"levels of {', '.join(known) or 'nothing'}, which {product.name} has", found)


def _check_cards(index: int, group: HostGroup) -> None:
    number = sum([one.count for one in group.cards])
    if number > MOST_PORTS:
        raise _wrong(_place("hosts", index, "cards", group.name), f"at most {MOST_PORTS} in all", str(number))
    for at, one in enumerate(group.cards):
        if not LEAST_CARD_BYTES <= one.memory <= MOST_CARD_BYTES or one.memory & one.memory - 1:
            expected = f"a power of two from {SIZE.format(LEAST_CARD_BYTES)} to {SIZE.format(MOST_CARD_BYTES)}"
            raise _wrong(_place("hosts", index, f"cards[{at}].memory", group.name), expected, SIZE.format(one.memory))
        if one.disk != MEMORY_DISK:
            place = _place("hosts", index, f"cards[{at}].disk", group.name)
            if one.kind is not CardKind.NVME:
                raise _wrong(place, f'"memory": only {CardKind.NVME.value} cards have a disk', shown(one.disk))
            _check_file(place, one.disk, LEAST_CARD_BYTES, "a card")


def _check_devices(place: _Place, vm: VmGroup, hosts: list[HostInstance]) -> None:
    if not vm.devices:
        return
    if vm.workload != DEVICE_WORK:
        raise _wrong(place("devices"), f"none: only {DEVICE_WORK} drives any", f"some with {vm.workload}")
    if len(vm.devices) > MOST_DEVICES:
        raise _wrong(place("devices"), f"at most {MOST_DEVICES}", str(len(vm.devices)))
    wanted = Counter(vm.devices)
    if not any(not wanted - Counter([one.kind for one in host.cards for _ in range(one.assignable)]) for host in hosts):
        told = " and ".join([f"{count} {kind.value}" for kind, count in wanted.items()])
        raise _wrong(place("devices"), "cards that one host has", told)


def _check_level(place: str, version: str, product: Product) -> None:
    known = {".".join(map(str, one.version)): one for one in LEVELS[product.name]}
    if version not in known:
        raise _wrong(place, f"a version that {product.name} was seen with ({', '.join(known)})", shown(version))


def _check_updates(scenario: Scenario) -> None:
    members = {group.name: PRODUCTS[group.product] for group in scenario.hosts}
    members |= {host.name: host.product for host in scenario.host_instances}
    for index, plan in enumerate(scenario.firmware_updates):
        place = f"firmware_updates[{index}]"
        if plan.host not in members:
            raise _wrong(f"{place}.host", "a host or a group of hosts of this scenario", shown(plan.host))
        _check_level(f"{place}.to", plan.to, members[plan.host])
        _check_moment(f"{place}.at", plan.at, scenario)
        if plan.commit_after is not None:
            _check_moment(f"{place}.commit_after", plan.at + plan.commit_after, scenario)


def _check_hiding(index: int, group: HostGroup, product: Product) -> None:
    if group.ciphertext_hiding is None:
        return
    place = _place("hosts", index, "ciphertext_hiding", group.name)
    if not product.can_hide_ciphertext:
        able = ", ".join(name for name, one in PRODUCTS.items() if one.can_hide_ciphertext)
        raise _wrong(place, f"a product that can hide ciphertext ({able})", product.name)
    least = product.min_sev_asid if group.min_sev_asid is None else group.min_sev_asid
    if group.ciphertext_hiding >= least:
        raise _wrong(place, f"less than {least}, the first ASID for SEV guests", str(group.ciphertext_hiding))


def _check_pages(place: str, size: int) -> None:
    if size % PAGE_2M:
        raise _wrong(place, "a multiple of 2 MiB", SIZE.format(size))


def _check_names(scenario: Scenario) -> None:
    """Hosts and virtual machines are told apart by name in every table and every random number."""
    for kind, groups in (("hosts", scenario.hosts), ("vms", scenario.vms)):
        total = sum(group.count for group in groups)
        if total > LARGEST_FLEET:
            raise _wrong(kind, f"at most {LARGEST_FLEET} in all", str(total))
    for kind, instances in (("hosts", scenario.host_instances), ("vms", scenario.vm_instances)):
        seen = Counter(instance.name for instance in instances)
        twice = [name for name, count in seen.items() if count > 1]
        if twice:
            raise _wrong(f"{kind}.name", "a name of its own for each", f"{shown(twice[0])} twice")
    hosts = {host.name for host in scenario.host_instances}
    if CONTROL in hosts:
        raise _wrong("hosts.name", "a name that the control plane does not have", shown(CONTROL))
    both = [vm.name for vm in scenario.vm_instances if vm.name in hosts]
    if both:
        raise _wrong("vms.name", "a name that no host has", shown(both[0]))


def _check_vm(
    scenario: Scenario, vm: VmGroup, index: int, homes: Mapping[str, HostInstance], image_of: _ImageOf
) -> None:
    def place(field: str) -> str:
        return _place("vms", index, field, vm.name)

    last = vm.arrival + (vm.count - 1) * vm.arrival_spacing
    if last >= scenario.duration:
        raise _wrong(
            place("arrival"), f"the last before the end at {DURATION.format(scenario.duration)}", DURATION.format(last)
        )
    if vm.lifetime == 0:
        raise _wrong(place("lifetime"), "more than no time", "0 s")
    if vm.start == "running" and last > 0:
        raise _wrong(place("start"), '"launch" for machines that arrive later than 0 s', '"running"')
    if vm.svsm:
        _check_svsm(place, vm)
    if vm.sev_policy and vm.generation not in SEALED:
        raise _wrong(place("sev_policy"), "none: only SEV and SEV_ES have it", f"one with {vm.generation.name}")
    if vm.migration_agent and vm.generation not in BY_AGENT:
        found = f"one with {vm.generation.name}"
        raise _wrong(place("migration_agent"), "false: only SEV_SNP and SEV_TIO have one", found)
    if vm.migration_handler and (vm.generation not in BY_AGENT or not vm.svsm):
        found = "one without an SVSM" if vm.generation in BY_AGENT else f"one with {vm.generation.name}"
        raise _wrong(place("migration_handler"), "false: only SEV_SNP and SEV_TIO with an SVSM have one", found)
    if vm.kernel.lazy_validation and (vm.svsm or not CAPABILITIES[vm.generation].rmp):
        raise _wrong(place("kernel.lazy_validation"), "false: only SEV_SNP and SEV_TIO without an SVSM have it", "true")
    if vm.svsm and not vm.kernel.tracks_validation:
        raise _wrong(place("kernel.tracks_validation"), "true: a kernel above an SVSM accepts no page itself", "false")
    if vm.firmware != "auto":
        _check_firmware(place, vm, image_of)
    try:
        validate_parameters(vm.workload, vm.parameters)
    except WorkloadParameterError as error:
        key = error.field
        got = shown(vm.parameters[key]) if key in vm.parameters else "nothing"
        raise _wrong(place(f"parameters.{key}"), error.expected, got) from None
    if vm.disk != MEMORY_DISK:
        _check_disk(place, vm)
    hosts = _candidates(homes, vm, place)
    _check_devices(place, vm, hosts)
    _check_fits(place, hosts, vm)


def _check_svsm(place: _Place, vm: VmGroup) -> None:
    if not CAPABILITIES[vm.generation].rmp:
        raise _wrong(place("svsm"), "false: only SEV_SNP and SEV_TIO have VMPLs", f"true with {vm.generation.name}")
    if vm.vcpus > MOST_VCPUS:
        raise _wrong(place("vcpus"), f"at most {MOST_VCPUS} with an SVSM", str(vm.vcpus))


def _check_firmware(place: _Place, vm: VmGroup, image_of: _ImageOf) -> None:
    path = Path(vm.firmware)
    if not path.is_file():
        raise _wrong(place("firmware"), '"auto" or an image file', f"no file {shown(vm.firmware)}")
    try:
        image = image_of(path)
    except FirmwareImageError as error:
        raise _wrong(place("firmware"), "an OVMF image", str(error)) from None
    if CAPABILITIES[vm.generation].rmp and not image.launches_snp:
        expected = f"an image with SEV metadata, for {vm.generation.name}"
        raise _wrong(place("firmware"), expected, f"{shown(vm.firmware)} without")
    if vm.svsm:
        try:
            svsm_guest(image, ())
        except FirmwareImageError as error:
            raise _wrong(place("firmware"), "an image that an SVSM can serve", str(error)) from None


def _check_servers(scenario: Scenario) -> None:
    """Whoever a client asks must be a server of this scenario."""
    servers = [vm.name for vm in scenario.vm_instances if vm.group.workload == SERVER]
    for index, group in enumerate(scenario.vms):
        if group.workload == CLIENT:
            wanted = group.parameters.get("server", "server")
            if wanted not in servers:
                expected = f"a virtual machine with {SERVER} ({', '.join(servers[:8]) or 'there is none'})"
                raise _wrong(_place("vms", index, "parameters.server", group.name), expected, shown(wanted))


def _check_relying_parties(scenario: Scenario) -> None:
    """Whoever attests can have reports and certificates, and somebody to show them to."""
    parties = [vm.name for vm in scenario.vm_instances if vm.group.workload == RELYING_PARTY]
    for index, group in enumerate(scenario.vms):
        if group.attest_to is None:
            continue
        place = _place("vms", index, "attest_to", group.name)
        if group.attest_to not in parties:
            expected = f"a virtual machine with {RELYING_PARTY} ({', '.join(parties[:8]) or 'there is none'})"
            raise _wrong(place, expected, shown(group.attest_to))
        if not CAPABILITIES[group.generation].key_per_vm:
            raise _wrong(place, "generation SEV, SEV_ES, SEV_SNP or SEV_TIO", group.generation.name)
        if CAPABILITIES[group.generation].rmp and scenario.key_service is None:
            raise _wrong(place, "a [key_service] from which hosts fetch certificates", "none")


def _check_disk(place: _Place, vm: VmGroup) -> None:
    _check_file(place("disk"), vm.disk, footprint(vm.program).disk_bytes * vm.vcpus, f"{vm.vcpus} vCPUs")


def _check_file(place: str, disk: str, need: int, user: str) -> None:
    """A file of whole blocks that is long enough."""
    path = Path(disk)
    if not path.is_file():
        raise _wrong(place, '"memory" or a file', f"no file {shown(disk)}")
    try:
        have = DiskFile(path).blocks * BLOCK_BYTES
    except DiskFileError as error:
        raise _wrong(place, error.expected, error.got) from None
    if have < need:
        raise _wrong(place, f"at least {SIZE.format(need)} for {user}", SIZE.format(have))


def _candidates(homes: Mapping[str, HostInstance], vm: VmGroup, place: _Place) -> list[HostInstance]:
    """The hosts that a machine may run on, as far as its pin and its generation go."""
    if vm.host is not None and vm.host not in homes:
        names = list(homes)
        shown_names = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise _wrong(place("host"), f"the name of a host ({shown_names})", shown(vm.host))
    hosts = list(homes.values()) if vm.host is None else [homes[vm.host]]
    able = [host for host in hosts if vm.generation in host.generations]
    if not able:
        products = ", ".join(dict.fromkeys(host.product.name for host in hosts))
        where = f"host {vm.host}" if vm.host else "any host"
        kind = f'{products}, mode = "sme"' if vm.generation is Generation.SME else products
        raise _wrong(place("generation"), f"one that {where} ({kind}) has", vm.generation.name)
    if vm.cpu_model == HOST_MODEL:
        return able
    shows = [host for host in able if not lacking(host.product, features_shown(vm.cpu_model, ""))]
    if not shows:
        products = ", ".join(dict.fromkeys(host.product.name for host in able))
        raise _wrong(place("cpu_model"), f"one that {vm.host or 'any host'} ({products}) can show", shown(vm.cpu_model))
    return shows


def _check_fits(place: _Place, hosts: list[HostInstance], vm: VmGroup) -> None:
    most_memory = max(host.memory_bytes for host in hosts)
    if not 0 < vm.memory <= most_memory:
        expected = f"more than 0 and at most {SIZE.format(most_memory)}, the largest host it may run on"
        raise _wrong(place("memory"), expected, SIZE.format(vm.memory))
    _check_pages(place("memory"), vm.memory)
    most_threads = max(host.threads for host in hosts)
    if vm.vcpus > most_threads:
        expected = f"at most {most_threads}, the threads of the largest host it may run on"
        raise _wrong(place("vcpus"), expected, str(vm.vcpus))
    _check_room(place, vm)


def _check_room(place: _Place, vm: VmGroup) -> None:
    """The guest's memory must hold each vCPU's program, beside the pool for devices."""
    need = footprint(vm.program)
    got = f"{SIZE.format(vm.memory)} for {vm.vcpus} vCPUs"
    if vm.memory < SMALLEST_GUEST_BYTES:
        raise _wrong(place("memory"), f"at least {SIZE.format(SMALLEST_GUEST_BYTES)}", SIZE.format(vm.memory))
    try:
        room = GuestMemoryMap(vm.memory, vm.vcpus).placement(vm.name, 0, 0)
    except ValueError:
        private = SIZE.format(max(need.private_bytes, SMALLEST_SLICE_BYTES))
        raise _wrong(place("memory"), f"{private} below 2 GiB for each vCPU", got) from None
    for name, least, most in (
        ("private", need.private_bytes, room.length),
        ("shared", need.shared_bytes, room.shared_length),
    ):
        if least > most:
            expected = f"enough for {SIZE.format(least)} of {name} memory for each vCPU's {vm.workload}"
            raise _wrong(place("memory"), expected, f"{got}, which leaves each {SIZE.format(most)}")
    written = vm.vcpus * need.written_bytes
    if written > vm.memory:
        expected = f"at least {SIZE.format(written)}, which its vCPUs write all over"
        raise _wrong(place("memory"), expected, SIZE.format(vm.memory))


def _check_migrations(scenario: Scenario) -> None:
    hosts = {host.name for host in scenario.host_instances}
    known = {group.name for group in scenario.vms} | {vm.name for vm in scenario.vm_instances}
    if scenario.fabric.link == 0:
        raise _wrong("fabric.link", "more than 0", "0")
    if scenario.fabric.reshare_grid == 0:
        raise _wrong("fabric.reshare_grid", "more than no time", "0")
    moving = scenario.migration
    if moving.throttle_max < moving.throttle_initial:
        expected = f"at least throttle_initial, {moving.throttle_initial}"
        raise _wrong("migration.throttle_max", expected, str(moving.throttle_max))
    for index, plan in enumerate(scenario.migrations):
        if plan.vm not in known and scenario.trace is None:
            raise _wrong(f"migrations[{index}].vm", "a virtual machine or a group of this scenario", shown(plan.vm))
        if plan.to is not None and plan.to not in hosts:
            raise _wrong(f"migrations[{index}].to", "a host of this scenario", shown(plan.to))
        if plan.to is not None and plan.placement == "random":
            both = "none beside to, which names the host"
            raise _wrong(f"migrations[{index}].placement", both, shown(plan.placement))
        _check_moment(f"migrations[{index}].at", plan.at, scenario)
    for index, drain in enumerate(scenario.drains):
        if drain.host not in hosts:
            raise _wrong(f"drains[{index}].host", "a host of this scenario", shown(drain.host))
        _check_moment(f"drains[{index}].at", drain.at, scenario)
    groups = {group.name for group in scenario.hosts}
    for index, fault in enumerate(scenario.faults):
        if fault.host is not None and fault.host not in hosts | groups:
            raise _wrong(f"faults[{index}].host", "a host or a group of hosts of this scenario", shown(fault.host))
        _check_moment(f"faults[{index}].at", fault.at, scenario)
        for name in MEANS_NOTHING[fault.kind]:
            if (value := getattr(fault, name)) != FaultPlan.model_fields[name].default:
                raise _wrong(f"faults[{index}].{name}", f"none: it means nothing for {fault.kind}", shown(value))
    if scenario.faults and not scenario.migration.answer_within:
        raise _wrong("migration.answer_within", "more than no time", "0")


def _check_moment(place: str, moment_ns: int, scenario: Scenario) -> None:
    if moment_ns >= scenario.duration:
        raise _wrong(place, f"before the end at {DURATION.format(scenario.duration)}", DURATION.format(moment_ns))


def _check_asids(scenario: Scenario) -> None:
    """Machines pinned to one host must not need more ASIDs at once than it has."""
    hosts = {host.name: host for host in scenario.host_instances}
    changes: dict[tuple[str, Generation], list[tuple[int, int]]] = {}
    for vm in scenario.vm_instances:
        if vm.group.host:
            kind = ASID_KINDS.get(vm.group.generation, vm.group.generation)
            changes.setdefault((vm.group.host, kind), []).extend(_comings_and_goings(vm))
    for name in dict.fromkeys(vm.host for vm in scenario.vms if vm.host):
        for kind in (Generation.SEV, Generation.SEV_SNP):
            asids = hosts[name].asids(kind)
            needed = _most_at_once(changes.get((name, kind), []))
            if asids is not None and needed > asids:
                there = {vm.generation for vm in scenario.vms if vm.host == name}
                names = " and ".join(one.name for one in Generation if one in there and ASID_KINDS.get(one) is kind)
                raise _wrong(
                    "vms.host",
                    f"at most {asids} {names} machines at once on {shown(name)}, which has that many ASIDs",
                    str(needed),
                )


def _most_at_once(changes: list[tuple[int, int]]) -> int:
    alive = most = 0
    for _, change in sorted(changes):  # at one instant those that leave sort before those that come
        alive += change
        most = max(most, alive)
    return most


def _comings_and_goings(vm: VmInstance) -> Iterator[tuple[int, int]]:
    yield vm.arrival_ns, 1
    if vm.group.lifetime is not None:
        yield vm.arrival_ns + vm.group.lifetime, -1


def _check_trace(scenario: Scenario, trace: TraceMix) -> None:
    if trace.source != "generated":
        for table in ("tasks", "fragments"):
            if not any((Path(trace.source) / f"{table}.{kind}").is_file() for kind in ("parquet", "csv")):
                expected = '"generated" or a folder with tasks and fragments, .parquet or .csv'
                raise _wrong("trace.source", expected, f"no {table} in {shown(trace.source)}")
    if not any(trace.generations.values()):
        raise _wrong("trace.generations", "a weight above 0", "only zeros")
    if trace.max_memory == 0:
        raise _wrong("trace.max_memory", "more than 0", SIZE.format(0))
    _check_pages("trace.max_memory", trace.max_memory)
    for generation, weight in trace.generations.items():
        able = [host for host in scenario.host_instances if generation in host.generations]
        if weight and not able:
            raise _wrong(f"trace.generations.{generation.name}", "a generation that some host has", "none has it")
        if weight and trace.max_memory > max(host.memory_bytes for host in able):
            raise _wrong("trace.max_memory", "what fits the hosts", SIZE.format(trace.max_memory))
