"""Predictions of launches, boots, attestations and keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

import numpy as np

from cluster.validation.case import Case
from cluster.validation.launch_batches import last_of, launch_batches, small_launch_batches
from node import operations as op
from node.asid_pool import AsidPool, AsidsExhausted
from node.generation import Generation
from node.host_kind import HostKind
from node.operation_cost import PSC_ENTRIES, GuestOperationCost, HostOperationCost
from node.product import PRODUCTS
from node.psp_queue import PspQueue
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES

_BOOTS = 200
_MS, _S = 1e6, 1e9
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_KIND = HostKind(2.45e9, rmp=True)
OVMF_BYTES = _MIB
"""The image of BL-2, by the artifact's label."""


def launch_update(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-1: the host's part of a region and a command for each of its pages."""
    cost = HostOperationCost(costs)
    region = cost.price((op.HostWork("psp.launch_region_ns"),))
    page = cost.psp_service_ns(op.PspCommand(SnpCommand.LAUNCH_UPDATE))
    return {point.name: (region + _size(point.name) / PAGE_BYTES * page) / _MS for point in case.points}


def _size(text: str) -> int:
    figure, unit = text.split()
    return int(figure) * {"KiB": _KIB, "MiB": _MIB}[unit]


def qemu_storm(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-2: recorded launches through one mailbox, and the time beside them that the fitted points have on average."""
    batches = launch_batches(OVMF_BYTES, "Milan")
    return _storm(case, lambda count: last_of(count, batches, costs) / _MS)


def microvm_storm(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-3: the same with launches by a small monitor."""
    batches = small_launch_batches("Milan")
    return _storm(case, lambda count: last_of(count, batches, costs) / _MS)


def _storm(case: Case, served: Callable[[int], float]) -> Mapping[str, float]:
    beside = fmean(value - served(_count(name)) for name, value in case.fitted().items())
    return {point.name: beside + served(_count(point.name)) for point in case.points}


def _count(name: str) -> int:
    return int(name.removeprefix("N="))


_LINUX = {"Lupine": "boot.linux_lupine_ns", "AWS": "boot.linux_aws_ns", "Ubuntu": "boot.linux_ubuntu_ns"}
OVMF_PHASES = {phase: f"boot.ovmf_{phase.lower()}_ns" for phase in ("SEC", "PEI", "DXE", "BDS")}


def boots(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-5: a launch and the phases that follow, monitor by monitor."""
    launch_ns = last_of(1, launch_batches(OVMF_BYTES, "Milan"), costs)
    qemu_ns = costs["boot.qemu_ns"] + launch_ns + sum(costs[name] for name in OVMF_PHASES.values())
    direct_ns = last_of(1, small_launch_batches("Milan"), costs)
    direct_ns += costs["boot.firecracker_ns"] + costs["boot.verifier_ns"] + costs["boot.decompress_ns"]
    found = {}
    for point in case.points:
        monitor, kernel = point.name.split(", ")
        before_ns = qemu_ns if monitor == "QEMU" else direct_ns
        found[point.name] = (before_ns + costs[_LINUX[kernel]]) / _MS
    return found


def boot_spread(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-5 p99: boots one after another, each waiting for whatever the security processor has not done yet."""
    batches = launch_batches(OVMF_BYTES, "Milan")
    launch_ns = round(last_of(1, batches, costs))
    rest_ns = round(costs["boot.qemu_ns"] + sum(costs[name] for name in OVMF_PHASES.values()))
    queue, at_ns, took_ns = PspQueue(), 0, []
    for _ in range(_BOOTS):
        end_ns, _ = queue.serve(at_ns, [(SnpCommand.LAUNCH_FINISH, launch_ns)])
        took_ns.append(end_ns + rest_ns - at_ns)
        at_ns = end_ns + rest_ns
    median, most = np.percentile(took_ns, (50, 99))
    return {point.name: float(most / median) for point in case.points}


def ovmf_phases(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-11: the rows themselves."""
    return {phase: costs[name] / _MS for phase, name in OVMF_PHASES.items()}


def acceptance(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """BL-12: a guest's page state changes, as many pages in each as fit, and its PVALIDATE of them."""
    price = GuestOperationCost(Generation.SEV_SNP, costs, _KIND)
    some = PSC_ENTRIES * PAGE_BYTES
    step = op.PageStateChange(0, some, shared=False), op.PValidate(0, some, large=False)
    return {"64 GiB": 64 * _GIB / some * price.price(step, costs["dram.latency_ns"], defaultdict(float)) / _S}


def attestation(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """AT-1: the report, the certificates, and both verifications."""
    at_hand_ns = _report_ns(costs) + costs["attest.verify_chain_ns"] + costs["attest.verify_report_ns"]
    fetched_ns = costs["attest.fetch_chain_ns"] + costs["attest.fetch_vcek_ns"]
    return {"with the key service": (at_hand_ns + fetched_ns) / _S, "certificates at hand": at_hand_ns / _MS}


def _report_ns(costs: Mapping[str, float]) -> int:
    return round(HostOperationCost(costs).psp_service_ns(op.PspCommand(SnpCommand.GUEST_REQUEST)))


def report_storm(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """AT-2: reports in the queue of the security processor, alone and behind launches."""
    report_ns = _report_ns(costs)

    def last_ns(reports: int, launches: int = 0) -> int:
        queue = PspQueue()
        for _ in range(launches):
            for batch in launch_batches(OVMF_BYTES, "Milan"):
                commands = [one for one in batch if isinstance(one, op.PspCommand)]
                cost = HostOperationCost(costs)
                queue.serve(0, [(one.command, round(cost.psp_service_ns(one))) for one in commands])
        return max(queue.serve(0, [(SnpCommand.GUEST_REQUEST, report_ns)])[0] for _ in range(reports))

    return {
        "the last of 10": last_ns(10) / _MS, "the last of 50": last_ns(50) / _MS,
        "one behind 10 launches, over one alone": last_ns(1, launches=10) / last_ns(1),
    }  # fmt: skip


def keys(case: Case, _: Mapping[str, float]) -> Mapping[str, float]:
    """CT-6: guests of both kinds that find an ASID."""
    return {point.name: float(_guests_with_keys(point.name)) for point in case.points}


def _guests_with_keys(product: str) -> int:
    pool = AsidPool(PRODUCTS[product].max_asid, PRODUCTS[product].min_sev_asid)
    guests = 0
    for generation in (Generation.SEV, Generation.SEV_SNP):
        try:
            while True:
                pool.allocate(generation)
                guests += 1
        except AsidsExhausted:
            continue
    return guests
