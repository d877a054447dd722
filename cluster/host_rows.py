"""The result rows of one host: its resources in use, its security processor and its digest chains."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node.event_log import BucketDigest
from node.guest import GuestState
from node.host import Host
from psp.commands import command_name
from psp.elliptic import PrivateKey
from psp.installed_firmware import Version

Rows = dict[str, list[dict[str, object]]]


def _neighbour_rows(host: Host) -> list[dict[str, object]]:
    ledger = host.contention.ledger
    return [
        {
            "host": host.spec.name, "vm": one.vm, "phase": one.phase, "neighbour": one.neighbour,
            "mechanism": one.mechanism.value, "time_ns": one.time_ns,
        }
        for one in ([] if ledger is None else ledger.losses())
    ]  # fmt: skip


def host_rows(host: Host, events: int, end_ns: int) -> Rows:
    """Rows for the tables ``hosts``, ``certificates``, ``psp``, ``firmware`` and ``digests``."""
    product, spec = host.spec.product, host.spec
    name = spec.name
    books, queue = host.hypervisor.figures(), host.tasks.psp_queue
    controller = host.board.controller
    bandwidth = host.contention.bandwidth_bytes_per_s
    row: dict[str, object] = {
        "host": name,
        "product": product.name,
        "threads": product.sockets * product.cores * product.threads_per_core,
        "vcpus_peak": host.vcpus.seats.peak,
        "memory_bytes": spec.memory_bytes,
        "memory_peak_bytes": books.memory_peak_bytes,
        "rmp_bytes": books.rmp_bytes,
        "resident_bytes": host.board.dram.resident_bytes,
        "asids_sev": books.asids_sev,
        "asids_sev_peak": books.asids_sev_peak,
        "asids_es_snp": books.asids_es_snp,
        "asids_es_snp_peak": books.asids_es_snp_peak,
        "vms": sum(guest.state is not GuestState.REFUSED for guest in host.guests.values()),
        "bandwidth_mean_ratio": host.contention.busy_bytes / (bandwidth * 1e-9 * end_ns) if end_ns else 0.0,
        "core_mean_ratio": host.contention.busy_thread_ns / (host.threads * end_ns) if end_ns else 0.0,
        "psp_busy_ns": queue.busy_ns,
        "psp_wait_ns": queue.waited_ns,
        "psp_longest_wait_ns": queue.longest_wait_ns,
        "bytes_encrypted": controller.bytes_encrypted,
        "bytes_decrypted": controller.bytes_decrypted,
        "operations": host.vcpus.operations,
        "phase_completions": host.vcpus.phase_completions,
        "events": events,
    }
    row["limit"], row["limit_ratio"] = limiting_resource(row, end_ns)
    store = host.certificates
    return {
        "hosts": [row],
        "certificates": []
        if store is None or store.wanted_ns is None
        else [
            {
                "host": name,
                "asked": store.asked,
                "refused": store.refused,
                "renewed": store.renewed,
                "wanted_ns": store.wanted_ns,
                "held_ns": store.held_ns,
            }
        ],
        "psp": [
            {
                "host": name,
                "command": command_name(command),
                "commands": queue.counts[command],
                "service_ns": queue.service_ns[command],
            }
            for command in sorted(queue.counts)
        ],
        "firmware": _firmware_rows(host),
        "neighbours": _neighbour_rows(host),
        "digests": [digest_row(bucket, spec.bucket_ns) for bucket in host.log.close()],
    }


def digest_row(bucket: BucketDigest, bucket_ns: int) -> dict[str, object]:
    """A row of the table ``digests``."""
    return {
        "entity": bucket.entity,
        "bucket": bucket.bucket,
        "start_ns": bucket.bucket * bucket_ns,
        "records": bucket.records,
        "digest": bucket.digest,
    }


def _firmware_rows(host: Host) -> list[dict[str, object]]:
    chip = host.board.psp.legacy.keys.chip
    return [
        {
            "host": host.spec.name,
            "number": number,
            "action": one.action.value,
            "asked_ns": one.asked_ns,
            "ended_ns": one.ended_ns,
            "result": one.result,
            "version": _dotted(one.current.version),
            "committed_version": _dotted(one.committed.version),
            "current_tcb": f"{one.current.tcb:016x}",
            "committed_tcb": f"{one.committed.tcb:016x}",
            "reported_tcb": f"{one.reported_tcb:016x}",
            "vcek": "" if chip.line.tcb is None else _fingerprint(chip.vcek_key(one.reported_tcb)),
            "guests": one.guests,
        }
        for number, one in enumerate(host.firmware.entries, 1)
    ]


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _fingerprint(key: PrivateKey) -> str:
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha256(point).hexdigest()[:16]


_LIMITS = (
    ("memory", "memory_peak_bytes", "memory_bytes"),
    ("threads", "vcpus_peak", "threads"),
    ("SEV ASIDs", "asids_sev_peak", "asids_sev"),
    ("SEV-ES/SNP ASIDs", "asids_es_snp_peak", "asids_es_snp"),
)


def limiting_resource(row: dict[str, object], end_ns: int) -> tuple[str, float]:
    """Which resource of a host came closest to its end, and its share in use."""
    shares = {name: _ratio(row[used], row[whole]) for name, used, whole in _LIMITS}
    shares["memory bandwidth"] = _ratio(row["bandwidth_mean_ratio"], 1.0)
    shares["security processor"] = _ratio(row["psp_busy_ns"], end_ns)
    name = max(sorted(shares), key=shares.__getitem__)
    return name, shares[name]


def _ratio(used: object, whole: object) -> float:
    assert isinstance(used, int | float)
    assert isinstance(whole, int | float)
    return used / whole if whole else 0.0
