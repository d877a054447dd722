"""A host of layout ``isolated``: its board here, its hypervisor and each VM's software in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from cluster.guest_processes import HypervisorProcess, ProcessFacts, TenantProcess
from cluster.host_entity import HostEntity, HostOrder
from cluster.lent_processes import LentProcess, LentProcesses
from cluster.ray_cluster import Actors
from node.firmware_image import FirmwareImage
from node.product import Product
from node.remote_hypervisor import RemoteHypervisor
from node.remote_tenant import RemoteTenant
from node.tenant import TenantSpec

PROCESSES = "processes"
"""Name of the rows, beside those of the tables, that say how each process fared."""


@cache
def _processes() -> LentProcesses:
    return LentProcesses(Actors())


def build_isolated_host(order: bytes) -> IsolatedHost:
    """Entity factory of the layout. A worker has one host at a time: what the one before had is free again."""
    return IsolatedHost(HostOrder.parse(order), _processes())


class IsolatedHost(HostEntity):
    """A host that has processes of ``processes`` to itself, of the kinds named."""

    def __init__(
        self,
        order: HostOrder,
        processes: LentProcesses,
        hypervisor_kind: type = HypervisorProcess,
        tenant_kind: type = TenantProcess,
    ) -> None:
        processes.take_all_back()
        self._processes = processes
        self._tenant_kind = tenant_kind
        self._hypervisor = processes.lend(hypervisor_kind, f"hypervisor of {order.spec.name}")
        self._tenants: dict[str, LentProcess] = {}
        self._ended: list[dict[str, object]] = []
        self._remote: RemoteHypervisor | None = None
        super().__init__(order, self._new_tenant, self._new_hypervisor)

    def _new_hypervisor(
        self, product: Product, memory_bytes: int, min_sev_asid: int, images: Mapping[str, FirmwareImage]
    ) -> RemoteHypervisor:
        self._remote = RemoteHypervisor(self._hypervisor.exchange, product, memory_bytes, min_sev_asid, images)
        return self._remote

    def _new_tenant(self, spec: TenantSpec) -> RemoteTenant:
        process = self._processes.lend(self._tenant_kind, f"tenant {spec.name}")

        def gone() -> None:
            self._ended.append(self._row("tenant", spec.name, process.facts(), process.calls))
            del self._tenants[spec.name]
            self._processes.take_back(process)

        self._tenants[spec.name] = process
        return RemoteTenant(spec, process.exchange, gone)

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """As of any host, and a row for each process."""
        rows = super().collect(end_ns)
        assert self._remote is not None
        executed = self.host.vcpus.operations + self._remote.operations
        rows[PROCESSES] = [
            self._row("host", self.name, ProcessFacts.of_this_process(executed), 0),
            self._row("hypervisor", self.name, self._hypervisor.facts(), self._hypervisor.calls),
            *self._ended,
            *(self._row("tenant", name, one.facts(), one.calls) for name, one in self._tenants.items()),
        ]
        return rows

    def _row(self, kind: str, name: str, facts: ProcessFacts, calls: int) -> dict[str, object]:
        return {
            "kind": kind, "name": name, "host": self.name, "pid": facts.pid, "operations": facts.operations,
            "calls": calls, "memory_bytes": facts.memory_bytes,
        }  # fmt: skip
