"""An attestation report as a verifier reads it (SEV-SNP firmware ABI, table "ATTESTATION_REPORT Structure")."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from psp.verifier.product_line import LINES, ProductLine, line_of_processor
from psp.verifier.reasons import Reason, Trail

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
VERSIONS = range(2, 6)
FIRST_WITH_CPUID = 3
FIRST_WITH_MITIGATIONS = 5

POLICY_SMT = 1 << 16
POLICY_RESERVED_ONE = 1 << 17
POLICY_MIGRATE_MA = 1 << 18
POLICY_DEBUG = 1 << 19
_POLICY_BITS = 26
_PLATFORM_BITS = 0xBF
_KEY_INFO_BITS = 5
VCEK, VLEK, NO_KEY = 0, 1, 7
"""Who signed, as key info says."""
_NUMBER_BYTES = 72
_P384_BYTES = 48
_SHORT_ID_BYTES = 8

_LAYOUT = (
    # name, offset, form
    ("version", 0x000, "I"),
    ("guest_svn", 0x004, "I"),
    ("policy", 0x008, "Q"),
    ("family_id", 0x010, "16s"),
    ("image_id", 0x020, "16s"),
    ("vmpl", 0x030, "I"),
    ("signature_algo", 0x034, "I"),
    ("current_tcb", 0x038, "8s"),
    ("platform_info", 0x040, "Q"),
    ("key_info", 0x048, "I"),
    ("reserved_4c", 0x04C, "4s"),
    ("report_data", 0x050, "64s"),
    ("measurement", 0x090, "48s"),
    ("host_data", 0x0C0, "32s"),
    ("id_key_digest", 0x0E0, "48s"),
    ("author_key_digest", 0x110, "48s"),
    ("report_id", 0x140, "32s"),
    ("report_id_ma", 0x160, "32s"),
    ("reported_tcb", 0x180, "8s"),
    ("cpuid", 0x188, "3s"),
    ("reserved_18b", 0x18B, "21s"),
    ("chip_id", 0x1A0, "64s"),
    ("committed_tcb", 0x1E0, "8s"),
    ("current_version", 0x1E8, "3s"),
    ("reserved_1eb", 0x1EB, "B"),
    ("committed_version", 0x1EC, "3s"),
    ("reserved_1ef", 0x1EF, "B"),
    ("launch_tcb", 0x1F0, "8s"),
    ("launch_mitigations", 0x1F8, "Q"),
    ("current_mitigations", 0x200, "Q"),
    ("reserved_208", 0x208, "152s"),
    ("r", 0x2A0, "72s"),
    ("s", 0x2E8, "72s"),
    ("signature_padding", 0x330, "368s"),
)
_FORM = struct.Struct("<" + "".join(form for *_, form in _LAYOUT))
assert _FORM.size == REPORT_BYTES


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of a report. TCBs are 8 bytes; versions are (major, minor, build)."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: int
    author_key_present: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    cpuid: tuple[int, int, int] | None
    """Family, model, stepping; None before version 3."""
    chip_id: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_mitigations: int
    current_mitigations: int
    signed: bytes = field(repr=False)
    r: int = field(repr=False)
    s: int = field(repr=False)


def parse_report(data: bytes, trail: Trail) -> Report:
    """A report from its 1184 bytes. Raises Rejected, stage PARSE."""
    demand = trail.demand
    demand(Reason.REPORT_LENGTH, len(data) == REPORT_BYTES, f"{len(data)} bytes")
    raw = dict(zip((name for name, *_ in _LAYOUT), _FORM.unpack(data), strict=True))
    version, policy, key_info, cpuid = raw["version"], raw["policy"], raw["key_info"], raw["cpuid"]
    signing_key = key_info >> 2 & 7
    demand(Reason.REPORT_VERSION, version in VERSIONS, version)
    demand(
        Reason.REPORT_POLICY_RESERVED, policy & POLICY_RESERVED_ONE and not policy >> _POLICY_BITS, f"{policy:#x}"
    )
    demand(Reason.REPORT_VMPL, raw["vmpl"] <= 3, raw["vmpl"])
    demand(Reason.REPORT_SIGNATURE_ALGORITHM, raw["signature_algo"] == 1, raw["signature_algo"])
    demand(Reason.REPORT_PLATFORM_INFO, not raw["platform_info"] & ~_PLATFORM_BITS, f"{raw['platform_info']:#x}")
    known_key = not key_info >> _KEY_INFO_BITS and signing_key in {VCEK, VLEK, NO_KEY}
    demand(Reason.REPORT_KEY_INFO, known_key, f"{key_info:#x}")
    demand(Reason.REPORT_RESERVED_4C, not any(raw["reserved_4c"]))
    line = line_of_processor(cpuid[0], cpuid[1]) if version >= FIRST_WITH_CPUID else None
    demand(Reason.REPORT_CPUID, line or (version < FIRST_WITH_CPUID and not any(cpuid)), cpuid.hex())
    demand(Reason.REPORT_RESERVED_18B, not any(raw["reserved_18b"]))
    demand(Reason.REPORT_CHIP_ID, line is None or not any(raw["chip_id"][line.chip_id_bytes :]), raw["chip_id"].hex())
    demand(Reason.REPORT_RESERVED_1EB, not raw["reserved_1eb"])
    demand(Reason.REPORT_RESERVED_1EF, not raw["reserved_1ef"])
    tcbs = [raw[name] for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")]
    layouts = [one.layout for one in _possible_lines(line, raw["chip_id"])]
    fits = any(all(layout.reserved_are_zero(tcb) for tcb in tcbs) for layout in layouts)
    demand(Reason.REPORT_TCB_RESERVED, fits, " ".join(tcb.hex() for tcb in tcbs))
    early = version < FIRST_WITH_MITIGATIONS and (raw["launch_mitigations"] or raw["current_mitigations"])
    demand(Reason.REPORT_RESERVED_1F8, not early)
    demand(Reason.REPORT_RESERVED_208, not any(raw["reserved_208"]))
    padding = raw["r"][_P384_BYTES:] + raw["s"][_P384_BYTES:] + raw["signature_padding"]
    demand(Reason.REPORT_SIGNATURE_PADDING, not any(padding))
    taken = {name: raw[name] for name in Report.__dataclass_fields__ if name in raw}
    return Report(
        **taken
        | {
            "author_key_present": bool(key_info & 1),
            "signing_key": NO_KEY if key_info & 2 else signing_key,
            "cpuid": tuple(cpuid) if version >= FIRST_WITH_CPUID else None,
            "current_version": tuple(reversed(raw["current_version"])),
            "committed_version": tuple(reversed(raw["committed_version"])),
            "signed": data[:SIGNED_BYTES],
            "r": int.from_bytes(raw["r"], "little"),
            "s": int.from_bytes(raw["s"], "little"),
        }
    )


def _possible_lines(line: ProductLine | None, chip_id: bytes) -> tuple[ProductLine, ...]:
    """Whose TCB layout may apply. Before version 3 a report does not say; a chip id does, unless it is masked."""
    if line is not None:
        return (line,)
    if not any(chip_id):
        return tuple(LINES.values())
    length = _SHORT_ID_BYTES if not any(chip_id[_SHORT_ID_BYTES:]) else len(chip_id)
    return tuple(one for one in LINES.values() if one.chip_id_bytes == length)
