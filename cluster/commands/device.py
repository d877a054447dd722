"""``sevfleet device``: a device that speaks SPDM on a socket, or a requester for any such device."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cluster.commands.arguments import moment, one_of, whole_number
from cluster.commands.small_files import read_small
from cluster.commands.stopping import ASKED, Interrupted
from cluster.errors import ToolError, UserError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from tio.card import Card
    from tio.spdm import MeasurementBlock, Packet, Requester

T = TypeVar("T")
NAME = "device"
HELP = "serve an emulated device over SPDM, or attest one"
DESCRIPTION = """\
Without more serves a card (GPU, NIC or NVMe) with certificates, measurements, IDE keys
and a TDISP interface of its own, in the socket framing of DMTF's emulators, so that
their requesters can attest it. It serves several requesters at once, until one asks for
the end, Ctrl-C or SIGTERM. It listens on 127.0.0.1; other machines reach it with --public
alone, and whoever reaches it may end it.

    sevfleet device attest HOST:PORT

asks any such device for its certificates, challenges it, reads signed
measurements, opens a session, updates its keys and reads them again. The last
line says whether it is believed; the exit code is 0 or 1. Without --root the
root that the device brings itself is believed, and its hash shown. Certificates
must be valid now, or at the time that --at names."""
EXAMPLE = """\
sevfleet device --kind gpu --listen 127.0.0.1:2323 --transport pci-doe --root-out root.der
  sevfleet device attest 127.0.0.1:2323 --root root.der"""

_KINDS = ("gpu", "nic", "nvme")
_TRANSPORTS = ("pci-doe", "mctp", "tcp")
_MOST_CERTIFICATE_BYTES = 1 << 16
_EMULATED_INTERFACE = 0xBEEF
"""Function and stream that DMTF's requester asks for."""
_EMULATED_STREAMS = (0, 1)
_DISK_BLOCKS = 1 << 17
_MAC = bytes.fromhex("020000000001")
_ONLY_ATTESTING = ("--root", "--at", "--spdm")
_ONLY_SERVING = ("--root-out", "--public")
_HEARTBEAT_S = 30
"""A session that is not heard of twice as long is over."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("action", nargs="?", choices=["attest"], metavar="attest", help="attest a device instead of serving one")
    add("address", nargs="?", metavar="HOST:PORT", help="where that device listens")
    add("--kind", type=one_of("kind", _KINDS), default="gpu", metavar="KIND", help="gpu, nic or nvme (default: gpu)")
    add("--listen", default="127.0.0.1:2323", metavar="HOST:PORT", help="where to serve (default: 127.0.0.1:2323)")
    add("--public", action="store_true", help="let --listen name an address that other machines reach")
    add("--transport", type=one_of("transport", _TRANSPORTS), default="pci-doe", metavar="NAME",
        help="pci-doe, mctp or tcp (default: pci-doe)")  # fmt: skip
    add("--seed", type=whole_number("seed", 0, (1 << 63) - 1), default=1, metavar="N",
        help="seed of the maker's and the device's keys (default: 1)")  # fmt: skip
    add("--serial", default="0001", metavar="TEXT", help="the device's serial number (default: 0001)")
    add("--root-out", metavar="FILE", help="write the root certificate, in DER")
    add("--root", metavar="FILE", help="attest: the root to trust, in DER")
    add("--at", type=moment, metavar="TIME", help="attest: the time to judge by, such as 2026-01-31 (default: now)")
    add("--spdm", type=one_of("spdm", ("1.2", "1.3")), metavar="VERSION", help="attest: speak this version alone")


def execute(arguments: argparse.Namespace) -> int:
    """Serve until somebody stops it, or attest."""
    if arguments.action == "attest":
        if arguments.address is None:
            raise UserError("attest: expected HOST:PORT of a device")
        _refuse(arguments, _ONLY_SERVING, "without attest, which serves nothing")
        return _attest(arguments)
    _refuse(arguments, _ONLY_ATTESTING, "with attest, which alone judges a device")
    card = _card(arguments)
    if arguments.root_out is not None:
        try:
            Path(arguments.root_out).write_bytes(card.identity.root)
        except OSError as error:
            raise UserError(f"--root-out: expected a file to write, got {error.strerror}") from None
    number = asyncio.run(_serve(card, arguments))
    if number:
        raise Interrupted(number)
    return 0


def _refuse(arguments: argparse.Namespace, options: Sequence[str], expected: str) -> None:
    for option in options:
        given = vars(arguments)[option.removeprefix("--").replace("-", "_")]
        if given is not None and given is not False:
            raise UserError(f"{option}: expected {expected}")


# Serving.


async def _serve(card: Card, arguments: argparse.Namespace) -> int:
    """The number of the signal that ended it; 0 where a requester did."""
    from cluster.device_server.device_door import DeviceDoor

    host, port = _address("--listen", arguments.listen)
    if not arguments.public and not _is_loopback(host):
        raise UserError(f"--listen: expected an address of this machine alone, or --public as well, got {host}")
    door = DeviceDoor(card.responder, arguments.transport)
    try:
        port = await door.open(host, port)
    except OSError as error:
        raise ToolError(f"--listen: expected a free address, got {host}:{port} ({error.strerror or error})") from None
    try:
        print(f"serving a {arguments.kind} over {arguments.transport} at {host}:{port}", flush=True)
        assert door.done is not None
        for number in ASKED:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, _stop, door.done, number)
        return await door.done
    finally:
        await door.close()


def _stop(done: asyncio.Future[int], number: int) -> None:
    if not done.done():
        done.set_result(number)


def _card(arguments: argparse.Namespace) -> Card:
    from tio.gpu_card import gpu_card
    from tio.nic_card import nic_card
    from tio.nvme_card import nvme_card
    from tio.nvme_namespace import NvmeNamespace
    from tio.spdm import ResponderSettings

    if not arguments.serial.isascii() or not arguments.serial.isprintable() or not 1 <= len(arguments.serial) <= 32:
        raise UserError("--serial: expected 1 to 32 printable ASCII characters")
    more: dict[str, Any] = {
        "seed": arguments.seed,
        "serial": arguments.serial,
        "requester_id": _EMULATED_INTERFACE,
        "streams": _EMULATED_STREAMS,
        "settings": ResponderSettings(heartbeat_s=_HEARTBEAT_S),
        "programmed": True,
    }
    random, kind = secrets.token_bytes, arguments.kind
    if kind == "nvme":
        return nvme_card(random, NvmeNamespace(_DISK_BLOCKS), **more)[0]
    return (nic_card(random, _MAC, **more) if kind == "nic" else gpu_card(random, **more))[0]


# Attesting.


def _attest(arguments: argparse.Namespace) -> int:
    from cluster.device_server.device_line import DeviceLine
    from cluster.device_server.socket_frames import TRANSPORTS
    from tio.spdm import Requester, RequesterSettings, SpdmFault, TrustAnchors, Version

    host, port = _address("attest", arguments.address)
    versions = {"1.2": (Version.V1_2,), "1.3": (Version.V1_3,), None: (Version.V1_2, Version.V1_3)}[arguments.spdm]
    roots = None if arguments.root is None else (read_small(Path(arguments.root), _MOST_CERTIFICATE_BYTES),)
    seconds = time.time() if arguments.at is None else arguments.at
    anchors = TrustAnchors(roots, datetime.fromtimestamp(seconds, UTC))
    _, binding = TRANSPORTS[arguments.transport]
    one = Requester(RequesterSettings(versions=versions, anchors=anchors), binding, secrets.token_bytes)
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(DeviceLine(host, port, arguments.transport))
        try:
            ask(one, line)
        except SpdmFault as fault:
            stack.pop_all()
            print(f"not believed: {fault}")
            return 1
    print(f"believed, after {line.exchanges} exchanges")
    return 0


class Line(Protocol):
    """Whoever carries a requester's packets."""

    def do(self, steps: Generator[Packet, Packet, T], /) -> T: ...


def ask(one: Requester, line: Line) -> None:
    """Attest a device and say what was found. Raises SpdmFault."""
    import hashlib

    from tio.spdm import PeerUntrusted

    line.do(one.connect())
    chosen = one.algorithms
    names = [part.value.name for part in (chosen.asym, chosen.hash, chosen.dhe, chosen.aead) if part is not None]
    print(f"SPDM {one.version}: {', '.join(names)}")
    slots = sorted(line.do(one.digests()))
    if not slots:
        raise UserError("attest: expected a device with certificates, found no slot that has any")
    chain = line.do(one.certificates(slots[0]))
    print(f"slot {slots[0]}: {len(chain.certificates)} certificates, device {chain.leaf.subject.rfc4514_string()}")
    print(f"root: SHA-256 {hashlib.sha256(chain.certificates[0]).hexdigest()}")
    line.do(one.challenge(slots[0]))
    outside = line.do(one.measurements(slot=slots[0]))
    for block in outside:
        print(f"measurement {block.index:#04x}: {_shown(block)}")
    session = line.do(one.open_session(slots[0]))
    line.do(one.update_keys(session))
    if line.do(one.measurements(slot=slots[0], session=session)) != outside:
        raise PeerUntrusted("measurements: expected the same in the session as before it")
    if session.heartbeat_s:
        line.do(one.heartbeat(session))
    line.do(one.end_session(session))


def _shown(block: MeasurementBlock) -> str:
    from tio.spdm import ValueType

    kind = ValueType(block.kind).name.lower() if block.kind in tuple(ValueType) else f"type {block.kind}"
    return f"{kind}, {'raw' if block.is_raw else 'digest'} {block.value.hex()}"


def _is_loopback(host: str) -> bool:
    """Whether nobody else reaches an address; of names that is known of one."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise UserError(f"{option}: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)
