"""``sevfleet verify``: whether to believe an attestation report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import moment, number, one_of, whole_number
from cluster.commands.small_files import read_small
from cluster.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psp.verifier import Evidence, Expectations, Reason, Rejected, Stage, Verdict

NAME = "verify"
HELP = "judge an attestation report of an SNP guest"
DESCRIPTION = """\
Judges a report in eight stages: parse, chain, binding, signature, policy, TCB
floor, freshness, id keys. The last line says whether it is believed, or the
one reason why not; the exit code is 0 or 1.

--certs names a folder with the ARK, ASK (or ASVK), VCEK (or VLEK) and, if
there is one, the revocation list, in PEM or DER; of several VCEKs the one
that fits the report is taken. The ARK in it is trusted: the output says
whether it is AMD's, and --root amd demands that.

Without options a guest that allows debugging or migration agents, or that did
not ask from VMPL 0, is refused; so are VLEKs. Nothing else is expected of it:
name what you know, at least --measurement, --report-data and --min-tcb."""
EXAMPLE = """\
sevfleet verify report.bin --certs certs/ --measurement HEX --report-data HEX \\
    --min-tcb bootloader=3,snp=8,microcode=115"""

PRODUCTS = ("Milan", "Genoa", "Bergamo", "Siena", "Turin")
SUFFIXES = {".pem", ".der", ".crt", ".cer", ".crl"}
MOST_FILES = 64
_MOST_REPORT_BYTES = 1 << 14
_MOST_CERTIFICATE_BYTES = 1 << 19
_REPORT_BYTES = 1184


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("report", metavar="REPORT", help="1184 bytes, or as many in hexadecimal")
    add("--certs", required=True, metavar="DIR", help="certificates and revocation list, in PEM or DER")
    root = parser.add_argument_group("trust")
    _add(root, "--root", _root, "given", "WORD", "given: the ARK in DIR; amd: AMD's; or SHA-256 of its key (given)")
    _add(root, "--at", moment, None, "TIME", "the time to judge by, such as 2026-01-31 (default: now)")
    root.add_argument("--crl", action="store_true", help="demand a revocation list")
    root.add_argument("--allow-vlek", action="store_true", help="believe a cloud provider's key too")
    _add(root, "--csp", str, None, "NAME", "the cloud provider whose VLEK it must be")
    host = parser.add_argument_group("the host")
    _add(host, "--product", one_of("product", PRODUCTS), None, "NAME", ", ".join(PRODUCTS))
    host.add_argument("--chip-id", type=_chip_id, action="append", metavar="HEX", help="an allowed chip; repeatable")
    host.add_argument("--allow-masked-chip-id", action="store_true", help="believe a host that hides its chip id")
    _add(host, "--min-tcb", _floor("min-tcb"), None, "NAME=N,...", "floor for fmc, bootloader, tee, snp, microcode")
    _add(host, "--pinned-tcb", _floor("pinned-tcb"), None, "NAME=N,...", "levels that must be those reported")
    described = "floor when the guest was launched (with --agent: the higher of --min-tcb and --pinned-tcb)"
    _add(host, "--min-launch-tcb", _floor("min-launch-tcb"), None, "NAME=N,...", described)
    _add(host, "--min-firmware", _version, None, "A.B.C", "lowest committed firmware version")
    host.add_argument("--no-provisional", action="store_true", help="refuse firmware that is not committed")
    bits = number("platform-set", 64)
    _add(host, "--platform-set", bits, 0, "VALUE", "platform info bits that must be set, such as 0x20: aliases checked")
    _add(host, "--platform-clear", number("platform-clear", 64), 0, "VALUE", "those that must be clear")
    guest = parser.add_argument_group("the guest")
    for option, size, described in _DIGESTS:
        _add(guest, f"--{option}", _octets(option, size), None, "HEX", described)
    _add(guest, "--policy", number("policy", 64), None, "VALUE", "its whole policy")
    _add(guest, "--policy-set", number("policy-set", 64), 0, "VALUE", "bits that must be set")
    _add(guest, "--policy-clear", number("policy-clear", 64), 0, "VALUE", "bits that must be clear")
    guest.add_argument("--allow-debug", action="store_true", help="believe a guest that may be debugged")
    guest.add_argument("--allow-migration", action="store_true", help="believe a guest that anybody's agent may move")
    guest.add_argument(
        "--agent", type=_octets("agent", 32), action="append", metavar="HEX",
        help="report id of an agent; a guest that may be moved must have one of these; repeatable",
    )
    _add(guest, "--vmpl", _vmpl, 0, "N", "who must have asked, 0 to 3 or any (default: 0)")
    _add(guest, "--min-svn", whole_number("min-svn", 0, (1 << 32) - 1), 0, "N", "lowest guest SVN")
    for option in ("id-key", "author-key"):
        digest = _octets(option, 48)
        described = "digest of a trusted key of the ID block; may be repeated"
        guest.add_argument(f"--{option}", type=digest, action="append", metavar="HEX", help=described)
    parser.add_argument("-v", "--verbose", action="store_true", help="list every check by its code")


_DIGESTS = (
    ("measurement", 48, "its launch digest, as sevfleet measure prints it"),
    ("report-data", 64, "the up to 64 bytes that it put into the report; zeros follow"),
    ("nonce", 32, "the first 32 of them"),
    ("host-data", 32, "what the host added at launch"),
    ("family-id", 16, "of its ID block"),
    ("image-id", 16, "of its ID block"),
)


def execute(arguments: argparse.Namespace) -> int:
    """Judge, say why, return 0 or 1."""
    from psp.verifier import Rejected, printable, verify

    evidence = _evidence(Path(arguments.report), Path(arguments.certs))
    for line in evidence.passed_over:
        print(f"passed over  {printable(line)}")
    now = int(time.time()) if arguments.at is None else arguments.at
    try:
        verdict = verify(evidence, _expectations(arguments), now, _roots(arguments.root, evidence))
    except Rejected as rejected:
        _show_checks(rejected.passed, rejected.left_out, rejected, verbose=arguments.verbose)
        print(f"rejected: {rejected}")
        return 1
    _show_report(verdict)
    _show_checks(verdict.passed, verdict.left_out, None, verbose=arguments.verbose)
    print(f"believed: {arguments.report}, {_root_name(verdict, evidence)}")
    return 0


def _evidence(report: Path, folder: Path) -> Evidence:
    from psp.verifier import assemble, der_blocks

    data = _unhexed(read_small(report, _MOST_REPORT_BYTES))
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    if len(files) > MOST_FILES:
        raise UserError(f"{folder}: expected at most {MOST_FILES} certificates, got {len(files)}")
    blocks = []
    for path in files:
        held = read_small(path, _MOST_CERTIFICATE_BYTES + 1)
        if len(held) > _MOST_CERTIFICATE_BYTES:
            raise UserError(f"{path}: expected at most {_MOST_CERTIFICATE_BYTES} bytes of certificates")
        blocks += [(path.name, der) for der in der_blocks(held)]
    return assemble(data, blocks)


def _unhexed(data: bytes) -> bytes:
    """A report that somebody wrote in hexadecimal is read as well; anything else is for the verifier to judge."""
    if len(data) == _REPORT_BYTES:
        return data
    try:
        return bytes.fromhex(data.decode("ascii"))
    except ValueError:
        return data


def _roots(word: str, evidence: Evidence) -> Mapping[str, frozenset[str]]:
    from psp.verifier import AMD_ROOTS, LINES, root_of

    if word == "amd":
        return AMD_ROOTS
    if word != "given":
        return dict.fromkeys(LINES, frozenset({word}))
    try:
        return {} if evidence.ark is None else root_of(evidence.ark)
    except ValueError:
        return {}  # the verifier says what is wrong with it


def _expectations(arguments: argparse.Namespace) -> Expectations:
    from psp.verifier import Expectations, higher_levels

    def any_of(values: list[bytes] | None) -> frozenset[bytes] | None:
        return None if values is None else frozenset(values)

    launch_tcb = arguments.min_launch_tcb
    if launch_tcb is None and arguments.agent is not None:
        # Who may be moved may have been launched under older firmware than it is under now.
        launch_tcb = higher_levels(arguments.min_tcb, arguments.pinned_tcb)
    return Expectations(
        product=arguments.product,
        chip_ids=any_of(arguments.chip_id),
        vlek_allowed=arguments.allow_vlek or arguments.csp is not None,
        csp_id=arguments.csp,
        masked_chip_id_allowed=arguments.allow_masked_chip_id,
        crl_demanded=arguments.crl,
        debug_allowed=arguments.allow_debug,
        migration_allowed=arguments.allow_migration or arguments.agent is not None,
        migration_agents=any_of(arguments.agent),
        policy=arguments.policy,
        policy_set=arguments.policy_set,
        policy_clear=arguments.policy_clear,
        platform_set=arguments.platform_set,
        platform_clear=arguments.platform_clear,
        vmpl=arguments.vmpl,
        measurement=arguments.measurement,
        host_data=arguments.host_data,
        family_id=arguments.family_id,
        image_id=arguments.image_id,
        min_guest_svn=arguments.min_svn,
        min_tcb=arguments.min_tcb,
        pinned_tcb=arguments.pinned_tcb,
        min_launch_tcb=launch_tcb,
        min_firmware=arguments.min_firmware,
        provisional_allowed=not arguments.no_provisional,
        report_data=arguments.report_data,
        nonce=arguments.nonce,
        id_key_digests=any_of(arguments.id_key),
        author_key_digests=any_of(arguments.author_key),
    )


# What it prints.


def _show_report(verdict: Verdict) -> None:
    from psp.verifier import spelled

    report, line = verdict.report, verdict.key.line
    layout = line.layout
    rows = {
        "product": f"{verdict.key.endorsement.product}, report version {report.version}",
        "chip id": report.chip_id[: line.chip_id_bytes].hex() if any(report.chip_id) else "masked",
        "TCB": f"{spelled(layout.split(report.reported_tcb))} (reported)",
        "firmware": ".".join(map(str, report.committed_version)) + " (committed)",
        "policy": f"{report.policy:#x}, VMPL {report.vmpl}, guest SVN {report.guest_svn}",
        "measurement": report.measurement.hex(),
        "report data": report.report_data.hex(),
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    print()


def _show_checks(
    passed: Sequence[Reason], left_out: Sequence[Reason], rejected: Rejected | None, *, verbose: bool
) -> None:
    """A line for each stage, or for each check."""
    from psp.verifier import Reason, Stage

    failed = rejected.reason if rejected else None
    words = dict.fromkeys(passed, "ok") | dict.fromkeys(left_out, "not asked for")
    if failed is not None:
        words[failed] = "FAILED"
    if verbose:
        for reason in Reason:
            if reason in words:
                print(f"{reason.stage.value:<10} {reason.name:<32} {words[reason]:<14} {reason.demand}")
        print()
        return
    print("stage       passed   not asked for")
    for stage in Stage:
        print(_stage_line(stage, words, failed))
    print()


def _stage_line(stage: Stage, words: Mapping[Reason, str], failed: Reason | None) -> str:
    within = [word for reason, word in words.items() if reason.stage is stage]
    outcome = "   FAILED" if failed is not None and failed.stage is stage else ""
    return f"{stage.value:<11} {within.count('ok'):>6} {within.count('not asked for'):>15}{outcome}"


def _root_name(verdict: Verdict, evidence: Evidence) -> str:
    from psp.verifier import AMD_ROOTS, root_of

    assert evidence.ark is not None
    line = verdict.key.line.name
    (digest,) = root_of(evidence.ark)[line]
    if digest in AMD_ROOTS[line]:
        return f"under AMD's root for {line}"
    return f"under a root for {line} that is not AMD's, SHA-256 of its key {digest}"


# Readers of arguments.


def _add(
    group: argparse._ArgumentGroup,
    option: str, reader: Callable[[str], object], default: object, metavar: str, described: str,
) -> None:  # fmt: skip
    group.add_argument(option, type=reader, default=default, metavar=metavar, help=described)


def _octets(name: str, size: int) -> Callable[[str], bytes]:
    up_to = name == "report-data"  # As attest takes it: zeros follow what is short.

    def read(text: str) -> bytes:
        try:
            found = bytes.fromhex(text)
        except ValueError:
            found = b""
        if len(found) != size and not (up_to and 0 < len(found) < size):
            raise UserError(f'--{name}: expected {"up to " * up_to}{2 * size} hexadecimal digits, got "{text}"')
        return found.ljust(size, b"\0")

    return read


def _chip_id(text: str) -> bytes:
    """64 bytes, or Turin's eight."""
    return _octets("chip-id", 8 if len(text) == 16 else 64)(text).ljust(64, b"\0")


def _floor(name: str) -> Callable[[str], dict[str, int]]:
    def read(text: str) -> dict[str, int]:
        from psp.verifier import COMPONENTS

        floor: dict[str, int] = {}
        for part in text.split(","):
            component, _, level = part.strip().partition("=")
            if component not in COMPONENTS or component in floor or not _is_octet(level):
                raise UserError(f'--{name}: expected levels such as snp=8 of {", ".join(COMPONENTS)}, got "{text}"')
            floor[component] = int(level)
        return floor

    return read


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    if len(parts) != 3 or not all(map(_is_octet, parts)):
        raise UserError(f'--min-firmware: expected three numbers such as 1.55.29, got "{text}"')
    return tuple(map(int, parts))


def _is_octet(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3 and int(text) < 256


def _vmpl(text: str) -> int | None:
    return None if text == "any" else whole_number("vmpl", 0, 3)(text)


def _root(text: str) -> str:
    if text in {"given", "amd"}:
        return text
    return _octets("root", 32)(text).hex()
