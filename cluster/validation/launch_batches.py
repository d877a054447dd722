"""What a launch asks of a host, batch by batch, recorded once from the real launch and priced under any cost table.

Launches at once go through the same queue as on a host: each host's work goes on beside the others',
and the security processor serves one batch at a time, first come, first served.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush

from node import operations as op
from node.firmware_image import FirmwareImage, firmware_image, verifier_image
from node.generation import Generation
from node.host import Host, HostSpec
from node.hypervisor_port import Batch
from node.laboratory_firmware import build_image
from node.machine_spec import MachineSpec
from node.operation_cost import HostOperationCost
from node.product import PRODUCTS
from node.psp_queue import PspQueue

_GUEST_BYTES = 256 << 20


@lru_cache(maxsize=8)
def launch_batches(image_bytes: int, product: str) -> tuple[Batch, ...]:
    """The batches of an SNP launch by QEMU of a machine with one vCPU from an image of this size."""
    return _recorded(firmware_image(build_image(image_bytes), "of a size"), product, small_monitor=False)


@lru_cache(maxsize=2)
def small_launch_batches(product: str) -> tuple[Batch, ...]:
    """Those of one by a small monitor, from what stands for a small verifier."""
    return _recorded(verifier_image(), product, small_monitor=True)


def _recorded(image: FirmwareImage, product: str, *, small_monitor: bool) -> tuple[Batch, ...]:
    host = Host(
        HostSpec("host", PRODUCTS[product], 4 << 30, PRODUCTS[product].min_sev_asid, 1, 1), {}, {"image": image},
        _FREE,
    )  # fmt: skip
    spec = MachineSpec("vm", Generation.SEV_SNP, 1, _GUEST_BYTES, "image", small_monitor=small_monitor)
    task = host.hypervisor.launch(spec)
    batches: list[Batch] = []
    answers: tuple[op.Answer, ...] | None = None
    try:
        while True:
            batch = task.send(answers)  # type: ignore[arg-type]
            batches.append(batch)
            answers = host.board.execute_host(batch)
    except StopIteration:
        return tuple(batches)


class _Free(dict[str, float]):
    """Every figure is one: nothing is charged while a launch is recorded."""

    def __missing__(self, _: str) -> float:
        return 1.0


_FREE: Mapping[str, float] = _Free()


def last_of(count: int, batches: tuple[Batch, ...], costs: Mapping[str, float]) -> float:
    """Nanoseconds until the last of so many launches, begun together on one host, has entered its machine."""
    cost, queue = HostOperationCost(costs), PspQueue()
    host_ns = [round(cost.price(batch)) for batch in batches]
    served = [
        [(one.command, round(cost.psp_service_ns(one))) for one in batch if isinstance(one, op.PspCommand)]
        for batch in batches
    ]
    waiting = [(0, number, 0) for number in range(count)]
    heapify(waiting)
    end_ns = 0
    while waiting:
        now_ns, number, step = heappop(waiting)
        now_ns += host_ns[step]
        if served[step]:
            now_ns, _ = queue.serve(now_ns, served[step])
        if step + 1 < len(batches):
            heappush(waiting, (now_ns, number, step + 1))
        end_ns = max(end_ns, now_ns)
    return float(end_ns)
