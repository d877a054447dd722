"""A small scenario whose guests talk: a key-value server, a client beside it and two on other hosts."""

from __future__ import annotations

from typing import Any

SERVER = {"records": 128, "value_bytes": 64}
CLIENT = {
    "server": "store", "records": 16, "value_bytes": 64, "instructions_per_batch": 100_000_000, "timeout_us": 100_000,
}  # fmt: skip


def vm(name: str, host: str, workload: str, generation: str = "SEV_SNP", **parameters: Any) -> dict[str, Any]:
    return {
        "name": name, "host": host, "workload": workload, "generation": generation, "memory": "128 MiB",
        "start": "running", "parameters": parameters,
    }  # fmt: skip


def scenario(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "name": "talk", "duration": "800 ms", "fabric": {"latency": "200 us"},
        "hosts": [{"name": "host", "product": "Milan", "count": 3, "memory": "16 GiB"}],
        "vms": [
            vm("store", "host-1", "key-value-server", **SERVER),
            vm("near", "host-1", "key-value-client", first_key=32, **CLIENT),
            vm("far", "host-2", "key-value-client", "PLAIN", **CLIENT),
            vm("other", "host-3", "key-value-client", "SEV_ES", first_key=64, **CLIENT),
        ],
        **changes,
    }  # fmt: skip
