"""One guest on one emulated host that attests, through its GHCB and the firmware, with the host's certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.errors import ToolError
from cluster.root_keys import product_root
from node import operations as op
from node.cost_table import load_cost_table
from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.hypervisor import Hypervisor
from node.platform import AS_USUAL
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp import certificate_table
from psp.certificate_table import CertificateKind
from psp.product_root import RootName
from psp.status import Status
from workloads.attesting import HEADER, KEY_SELECTION, REPORT_DATA, Attesting

HOST, GUEST, PROGRAM = "host", "guest", "attesting"
_HOST_BYTES, _GUEST_BYTES = 4 << 30, 64 << 20
_MOST_NS = 3_600_000_000_000
"""Of virtual time, launch and all."""


@dataclass(frozen=True, slots=True)
class AttestedGuest:
    """What the guest showed: its report, and the certificates that came with it."""

    report: bytes = field(repr=False)
    certificates: Mapping[CertificateKind, bytes] = field(repr=False)
    launch_digest: str


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is asked for. Equal ones give equal bytes.

    ``report_data`` are at most 64 bytes. ``report_version`` None is the one that firmware of the product makes.
    ``laboratory`` is whose root signs.
    """

    product: str
    report_data: bytes
    image: FirmwareImage
    seed: int = 1
    report_version: int | None = None
    laboratory: int = 0
    key_selection: int = 0


def attest(asked: Attestation) -> AttestedGuest:
    """Launch the guest, and wait until it shows what it got. Raises ToolError where it got nothing."""
    host = _host(asked)
    table = _table(host, asked.laboratory)
    host.board.certificates = lambda: table
    parameters = ((REPORT_DATA, asked.report_data.hex()), (KEY_SELECTION, asked.key_selection))
    spec = GuestSpec(GUEST, Generation.SEV_SNP, 1, _GUEST_BYTES, ProgramSpec(PROGRAM, parameters), asked.seed)
    host.launch(spec, lambda _: None)
    guest, events = host.guests[GUEST], host.clock.env
    while guest.state is GuestState.LAUNCHING or (guest.state is GuestState.RUNNING and not _is_done(host)):
        if events.peek() > _MOST_NS:
            raise ToolError(f"the guest has not attested within {_MOST_NS // 10**9} s")
        events.step()
    if guest.state is not GuestState.RUNNING:
        raise ToolError(f"the guest ended without a report: {guest.reason or guest.state.value}")
    status, report, shown = _shown(host)
    if status:
        raise ToolError(f"the firmware refused a report: {Status(status).name}")
    return AttestedGuest(report, certificate_table.parsed(shown), guest.launch_digest)


def _host(asked: Attestation) -> Host:
    product = PRODUCTS[asked.product]
    platform = replace(AS_USUAL, report_version=asked.report_version)
    spec = HostSpec(HOST, product, _HOST_BYTES, product.min_sev_asid, asked.seed, 60 * 10**9, platform=platform)
    images, programs = {"auto": asked.image}, {PROGRAM: Attesting.build}
    return Host(spec, programs, images, load_cost_table())


def _table(host: Host, laboratory: int) -> bytes:
    """What the key service has on the host's chip, as its owner fetched it."""
    psp = host.board.psp
    chip, tcb = psp.legacy.keys.chip, psp.firmware.reported_tcb
    root = product_root(chip.line.name, laboratory)
    return certificate_table.packed({
        CertificateKind.VCEK: root.vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb),
        CertificateKind.ASK: root.certificate(RootName.ASK),
        CertificateKind.ARK: root.certificate(RootName.ARK),
        CertificateKind.CRL: root.revocation_list(),
    })  # fmt: skip


def _program(host: Host) -> Attesting:
    """The laboratory's look at the guest's software, to know where it shows things."""
    spec = host.guests[GUEST].spec
    placement = spec.memory.placement(GUEST, 0, spec.seed)
    return Attesting.build(spec.program, placement)


def _is_done(host: Host) -> bool:
    return bool(host.guests[GUEST].vcpus[0].registers.r13)


def _shown(host: Host) -> tuple[int, bytes, bytes]:
    """Status, report and table of certificates, read as the host reads shared memory."""
    hypervisor = host.hypervisor
    assert isinstance(hypervisor, Hypervisor)
    outbox, record = _program(host).outbox, hypervisor.launched(GUEST)
    reads = tuple(op.HostRead(spa, length) for _, spa, length in record.backing(outbox))
    pieces = host.board.execute_host(reads)
    octets = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    status, report, table = HEADER.unpack_from(octets)
    body = octets[HEADER.size :]
    return status, body[:report], body[report : report + table]
