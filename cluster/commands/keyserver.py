"""``sevfleet keyserver``: AMD's key distribution service for emulated chips, over HTTP on this machine."""

from __future__ import annotations

import argparse
import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import one_of, whole_number
from cluster.commands.stopping import ASKED, Interrupted
from cluster.errors import ToolError, UserError

if TYPE_CHECKING:
    from cluster.key_server.key_service import KeyService

NAME = "keyserver"
HELP = "serve certificates of emulated chips over HTTP"
DESCRIPTION = """\
Serves what AMD's key distribution service serves, under the same paths, for the
chips of a scenario's hosts, or of the single hosts of a seed that other commands
emulate; signed by the roots of a laboratory, which protect nothing. The keys of
another laboratory than 0 take some seconds to find, once.

    /vcek/v1/PRODUCT/CHIP-ID?blSPL=&teeSPL=&snpSPL=&ucodeSPL=   DER (Turin: and fmcSPL)
    /vcek/v1/PRODUCT/cert_chain     PEM, ASK then ARK    /vcek/v1/PRODUCT/crl   DER
    /vlek/v1/PRODUCT/cert?blSPL=&teeSPL=&snpSPL=&ucodeSPL=      /vlek/v1/PRODUCT/cert_chain
    /cek/id/CHIP-ID                 AMD's format

With --rate it answers 429 to who asks too often; --slow, --down and --lie make
it fail on purpose. It listens on 127.0.0.1 alone, until Ctrl-C or SIGTERM."""
EXAMPLE = """\
sevfleet keyserver --port 8420 --rate 2 --burst 10 fleet.toml
  curl -s http://127.0.0.1:8420/vcek/v1/Genoa/cert_chain"""

_DEFAULT_PORT = 8420
_LIES = ("other-chip", "other-tcb", "other-root", "expired", "revoked", "garbage")
_MOST_DELAY_MS = 600_000
_MOST_PROVIDER = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("scenario", nargs="?", metavar="FILE", help="a scenario, for the chips of its hosts")
    seed = whole_number("seed", 0, (1 << 63) - 1)
    add("--seed", type=seed, metavar="N", help="seed of the chips (default: the scenario's, or 1)")
    laboratory = whole_number("laboratory", 0, (1 << 63) - 1)
    add("--laboratory", type=laboratory, default=0, metavar="N", help="seed of the root keys (default: 0)")
    add("--port", type=whole_number("port", 0, 65535), default=_DEFAULT_PORT, metavar="N",
        help=f"where to listen (default: {_DEFAULT_PORT}; 0: any)")  # fmt: skip
    add("--issued", type=_date, metavar="DATE", help="date of all certificates (default: January 1st of this year)")
    add("--provider", type=_provider, default="CN=cloud.example", metavar="NAME",
        help="whose VLEKs it knows (default: CN=cloud.example)")  # fmt: skip
    add("--rate", type=_rate, metavar="N", help="requests a second of each client (default: no limit)")
    burst, slow = whole_number("burst", 1, 1_000_000), whole_number("slow", 0, _MOST_DELAY_MS)
    add("--burst", type=burst, default=1, metavar="N", help="so many of them at once (default: 1)")
    add("--slow", type=slow, default=0, metavar="MS", help="wait before each answer")
    add("--down", action="store_true", help="answer 503 to everything")
    add("--lie", type=one_of("lie", _LIES), metavar="KIND", help=f"one of {', '.join(_LIES)}")


def execute(arguments: argparse.Namespace) -> int:
    """Serve until somebody stops it."""
    raise Interrupted(asyncio.run(_serve(_service(arguments), arguments.port)))


async def _serve(service: KeyService, port: int) -> int:
    """The number of the signal that ended it."""
    from cluster.key_server.http_door import ADDRESS, HttpDoor

    door = HttpDoor(service.answer)
    try:
        port = await door.open(port)
    except OSError as error:
        raise ToolError(f"--port: expected a free port on {ADDRESS}, got {port} ({error.strerror or error})") from None
    try:
        print(f"serving certificates at http://{ADDRESS}:{port}", flush=True)
        return await _signalled()
    finally:
        await door.close()


async def _signalled() -> int:
    """Wait for a signal; taken between two steps of the loop, lest it interrupt one connection's."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    for number in ASKED:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, _stop, stopped, number)
    return await stopped


def _stop(stopped: asyncio.Future[int], number: int) -> None:
    if not stopped.done():
        stopped.set_result(number)


def _service(arguments: argparse.Namespace) -> KeyService:
    from cluster.key_server.chip_register import SINGLE_HOSTS, ChipRegister
    from cluster.key_server.failures import FOR_EVER_NS, Failures, Lie
    from cluster.key_server.gate import Gate
    from cluster.key_server.key_service import KeyService, provider_secret
    from cluster.key_server.rate_limit import RateLimit
    from cluster.root_keys import product_root
    from node.product import PRODUCTS

    hosts = [(name, product) for product in PRODUCTS.values() for name in SINGLE_HOSTS]
    seed = 1
    if arguments.scenario is not None:
        from cluster.scenario import Scenario

        scenario = Scenario.load(Path(arguments.scenario))
        hosts, seed = [(host.name, host.product) for host in scenario.host_instances], scenario.seed
    seed = seed if arguments.seed is None else arguments.seed
    lie = Lie(arguments.lie) if arguments.lie else None
    failures = Failures(arguments.slow * 1_000_000, FOR_EVER_NS if arguments.down else 0, lie)
    return KeyService(
        ChipRegister(hosts, seed),
        lambda line: product_root(line, arguments.laboratory),
        arguments.issued or datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC),
        arguments.provider,
        provider_secret(arguments.provider, seed),
        Gate(RateLimit(arguments.rate, arguments.burst) if arguments.rate else None, failures),
    )


def _date(text: str) -> datetime:
    try:
        date = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UserError(f"--issued: expected a date like 2026-01-31, got {text!r}") from None
    if not 1980 <= date.year <= 2200:
        raise UserError(f"--issued: expected a year from 1980 to 2200, got {date.year}")
    return date


def _provider(text: str) -> str:
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= _MOST_PROVIDER):
        raise UserError(f"--provider: expected 1 to {_MOST_PROVIDER} printable ASCII characters")
    return text


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1_000_000:
        raise UserError(f"--rate: expected a number from 0.001 to 1000000, got {text!r}")
    return rate
