"""Machines that a small monitor starts are up when SEVeriFast's were, alone and many at once."""

import pytest

from cluster import run
from cluster.scenario import Scenario
from cluster.validation.launch_batches import launch_batches, small_launch_batches
from node import operations as op
from node.cost_table import load_cost_table
from node.firmware_image import firmware_image, verifier_image
from node.generation import Generation
from node.laboratory_firmware import build_image
from node.launch_promise import least_launch_ns
from node.operation_cost import HostOperationCost

MS = 1e6


def up_ms(count: int, generation: str = "SEV_SNP") -> list[float]:
    """When each of so many that are asked for at once begins its program."""
    scenario = Scenario.parse({
        "schema": 1, "name": "direct", "duration": "6 s",
        "hosts": [{"name": "milan", "product": "Milan", "memory": "64 GiB"}],
        "vms": [{
            "name": "vm", "count": count, "generation": generation, "memory": "256 MiB", "workload": "trace-player",
            "kernel": {"boot": "direct"}, "parameters": {"working_set_bytes": 4096, "touches_per_step": 1},
        }],
    })  # fmt: skip
    results = run(scenario, layout="inline")
    boot = {one["vm"]: one["time_ns"] for one in results.vm_time.to_pylist() if one["mechanism"] == "boot"}
    return sorted((one["running_ns"] - one["arrival_ns"] + boot[one["vm"]]) / MS for one in results.vms.to_pylist())


@pytest.mark.parametrize(("count", "published_ms", "tolerance"), [(1, 171, 0.08), (10, 467, 0.15), (49, 1797, 0.15)])
def test_so_many_at_once_are_up_when_they_were_on_hardware(count: int, published_ms: float, tolerance: float) -> None:
    """SEVeriFast, Lupine: the median of one, and the last of many."""
    assert up_ms(count)[-1] == pytest.approx(published_ms, rel=tolerance)


def test_without_snp_a_monitor_has_less_to_do() -> None:
    """74.7 to 77.8 ms with SNP, 10.5 to 19.3 without."""
    (plain,), (snp,) = up_ms(1, "PLAIN"), up_ms(1)
    assert snp - plain == pytest.approx(76.25 - 14.9, rel=0.02)


@pytest.mark.parametrize("small_monitor", [False, True])
def test_a_host_promises_no_more_than_a_launch_takes_of_its_security_processor(small_monitor: bool) -> None:
    cost = HostOperationCost(load_cost_table())
    image = verifier_image() if small_monitor else firmware_image(build_image(1 << 20), "of a size")
    batches = small_launch_batches("Milan") if small_monitor else launch_batches(1 << 20, "Milan")
    taken = sum(cost.psp_service_ns(one) for batch in batches for one in batch if isinstance(one, op.PspCommand))
    promised = least_launch_ns(image, Generation.SEV_SNP, cost, small_monitor=small_monitor)
    assert 0 < promised <= taken
