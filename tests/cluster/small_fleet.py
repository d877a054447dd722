"""A small fleet that has work for every generation and workload."""

from __future__ import annotations

from typing import Any

from cluster.scenario import Scenario


def small_fleet(**changes: Any) -> Scenario:
    """Three hosts, six VMs of three generations that arrive, work and partly leave, in five minutes."""
    values: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "duration": "5 min",
        "hosts": [
            {"name": "naples", "product": "Naples", "memory": "16 GiB"},
            {"name": "milan", "product": "Milan", "memory": "16 GiB"},
            {"name": "turin", "product": "Turin", "memory": "16 GiB"},
        ],
        "vms": [
            vm("kv-plain", "PLAIN", "key-value-store"),
            vm("kv-sev", "SEV", "key-value-store", host="naples", lifetime="2 min"),
            vm("kv-snp", "SEV_SNP", "key-value-store", vcpus=2, host="milan", svsm=True),
            vm("random-snp", "SEV_SNP", "random-access", host="milan", arrival="1 s"),
            vm("stream-plain", "PLAIN", "stream", host="milan", start="running"),
            vm("build-snp", "SEV_SNP", "compile-job", host="turin", arrival="10 s", lifetime="3 min"),
        ],
        "trace": {"vms": 2, "generations": {"SEV": 1, "PLAIN": 1}, "max_vcpus": 2, "max_memory": "1 GiB"},
    }
    return Scenario.parse(values | changes)


def vm(name: str, generation: str, workload: str, **more: object) -> dict[str, object]:
    return {
        "name": name, "generation": generation, "vcpus": 1, "memory": "512 MiB", "workload": workload, **more,
    }  # fmt: skip
