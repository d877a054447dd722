"""A host of layout ``isolated``: its board here, its hypervisor and each VM's software in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cache

from cluster.host_entity import HostEntity, HostOrder
from cluster.hypervisor_process import HypervisorProcess
from cluster.layout import WorkerLostError
from cluster.lent_processes import LentProcesses, Servant, ServingProcess
from cluster.process_facts import ProcessFacts
from cluster.ray_cluster import Actors
from cluster.tenant_process import TenantProcess
from node.firmware_image import FirmwareImage
from node.port_window import PortWindow
from node.product import Product
from node.remote_hypervisor import RemoteHypervisor
from node.remote_tenant import RemoteTenant
from node.tenant import TenantSpec

PROCESSES = "processes"
"""Name of the rows, beside those of the tables, that say how each process fared."""


@cache
def _own_processes() -> LentProcesses:
    return LentProcesses(Actors())


def build_isolated_host(order: bytes) -> IsolatedHost:
    """Entity factory of the layout, whose workers have one host at a time."""
    return IsolatedHost(HostOrder.parse(order), _own_processes())


class IsolatedHost(HostEntity):
    """A host with processes of these kinds. It takes ``processes`` whole: those of a host before it are free again."""

    def __init__(
        self,
        order: HostOrder,
        processes: LentProcesses,
        hypervisor: type[Servant] = HypervisorProcess,
        tenant: type[Servant] = TenantProcess,
    ) -> None:
        processes.take_all_back()
        self._processes = processes
        self._tenant_kind = tenant
        self._hypervisor = processes.lend(hypervisor, f"hypervisor of {order.spec.name}")
        processes.prepare(tenant, len(order.guests))
        self._tenants: dict[str, ServingProcess] = {}
        self._gone: list[dict[str, object]] = []
        """Rows of VMs that are here no more."""
        self._remote: RemoteHypervisor | None = None
        super().__init__(order, self._new_tenant, self._new_hypervisor)

    def _new_hypervisor(
        self,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int,
        ports: tuple[PortWindow, ...],
    ) -> RemoteHypervisor:
        self._remote = RemoteHypervisor(
            self._hypervisor.exchange, product, memory_bytes, min_sev_asid, images, max_snp_asid, ports
        )
        return self._remote

    def _new_tenant(self, spec: TenantSpec) -> RemoteTenant:
        process = self._tenants[spec.name] = self._processes.lend(self._tenant_kind, f"tenant {spec.name}")
        return RemoteTenant(spec, process.exchange, lambda: self._part_from(spec.name))

    def _part_from(self, vm: str) -> None:
        process = self._tenants.pop(vm)
        self._gone += self._rows("tenant", vm, process)
        self._processes.take_back(process)

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """As of any host, and a row for each process that is still there."""
        rows = super().collect(end_ns)
        assert self._remote is not None
        executed = ProcessFacts.of_this_process(self.host.vcpus.operations + self._remote.operations)
        told = [self._row("host", self.name, executed, 0), *self._rows("hypervisor", self.name, self._hypervisor)]
        for vm, process in self._tenants.items():
            told += self._rows("tenant", vm, process)
        rows[PROCESSES] = [*told, *self._gone]
        return rows

    def _rows(self, kind: str, name: str, process: ServingProcess) -> list[dict[str, object]]:
        """A row, or none of a process that is lost: the host has all that results are made of."""
        calls = process.calls
        with contextlib.suppress(WorkerLostError):
            return [self._row(kind, name, process.facts(), calls)]
        return []

    def _row(self, kind: str, name: str, facts: ProcessFacts, calls: int) -> dict[str, object]:
        return {
            "kind": kind, "name": name, "host": self.name, "pid": facts.pid, "operations": facts.operations,
            "calls": calls, "memory_bytes": facts.memory_bytes,
        }  # fmt: skip
