"""What the processors of each line show a guest by CPUID, one row a feature: a guest may go where all of it is found.

Rows: places of bits from AMD's APM volume 3, appendix E, and the PPRs of families 17h, 19h and 1Ah; which line has
which first from QEMU's CPU models EPYC to EPYC-Turin (``builtin_x86_defs``, target/i386/cpu.c; libvirt's src/cpu_map),
which are what a KVM host of that line shows. XCR0 bits follow from the registers that the features keep their state in.
What QEMU's models leave out is left out: topology, caches, resource control, MONITOR, performance counters of the
data fabric. So is SVM and what belongs to it: guests here nest nothing.

No line lacks what an older one shows, so that a guest may always go up; ``CpuidSwitches`` has what would change that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

EAX, EBX, ECX, EDX = range(4)

Leaf = tuple[int, int]
"""Function and index."""
Registers = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class CpuidSwitches:
    """Features of which it depends on a host's software, or is not known, whether its guests are shown them."""

    xsaves_before_milan: bool = False
    """XSAVES of Naples and Rome, which Linux hides since 6.2 for an erratum (commit b0563468eeac)."""
    shadow_stacks: bool = False
    """CET_SS of Milan and later: the parts have it, none of their QEMU models has; KVM shows it of late."""


@dataclass(frozen=True, slots=True)
class CpuFeature:
    """One bit of a leaf that says what a guest may use, by the name that Linux and QEMU give it."""

    name: str
    leaf: Leaf
    register: int
    bit: int


_ROWS: tuple[tuple[str, int, int, int, str], ...] = (
    # line, function, index, register, features by bit
    ("Naples", 1, 0, EDX, """fpu:0 vme:1 de:2 pse:3 tsc:4 msr:5 pae:6 mce:7 cx8:8 apic:9 sep:11 mtrr:12 pge:13 mca:14
        cmov:15 pat:16 pse36:17 clflush:19 mmx:23 fxsr:24 sse:25 sse2:26"""),
    ("Naples", 1, 0, ECX, """pni:0 pclmulqdq:1 ssse3:9 fma:12 cx16:13 sse4_1:19 sse4_2:20 movbe:22 popcnt:23 aes:25
        xsave:26 avx:28 f16c:29 rdrand:30"""),
    ("Milan", 1, 0, ECX, "pcid:17"),
    ("Naples", 6, 0, EAX, "arat:2"),
    ("Naples", 7, 0, EBX, "fsgsbase:0 bmi1:3 avx2:5 smep:7 bmi2:8 rdseed:18 adx:19 smap:20 clflushopt:23 sha_ni:29"),
    ("Rome", 7, 0, EBX, "clwb:24"),
    ("Milan", 7, 0, EBX, "erms:9 invpcid:10"),
    ("Genoa", 7, 0, EBX, "avx512f:16 avx512dq:17 avx512ifma:21 avx512cd:28 avx512bw:30 avx512vl:31"),
    ("Rome", 7, 0, ECX, "umip:2 rdpid:22"),
    ("Milan", 7, 0, ECX, "pku:3 vaes:9 vpclmulqdq:10"),
    ("Genoa", 7, 0, ECX, "avx512vbmi:1 avx512vbmi2:6 gfni:8 avx512vnni:11 avx512bitalg:12 avx512-vpopcntdq:14 la57:16"),
    ("Turin", 7, 0, ECX, "movdiri:27 movdir64b:28"),
    ("Milan", 7, 0, EDX, "fsrm:4"),
    ("Turin", 7, 0, EDX, "avx512-vp2intersect:8"),
    ("Genoa", 7, 1, EAX, "avx512-bf16:5"),
    ("Turin", 7, 1, EAX, "avx-vnni:4"),
    ("Naples", 0xD, 0, EAX, "xcr0-x87:0 xcr0-sse:1 xcr0-avx:2"),
    ("Milan", 0xD, 0, EAX, "xcr0-pkru:9"),
    ("Genoa", 0xD, 0, EAX, "xcr0-opmask:5 xcr0-zmm-hi256:6 xcr0-hi16-zmm:7"),
    ("Naples", 0xD, 1, EAX, "xsaveopt:0 xsavec:1 xgetbv1:2"),
    ("Milan", 0xD, 1, EAX, "xsaves:3"),
    ("Naples", 0x8000_0001, 0, EDX, "syscall:11 nx:20 mmxext:22 fxsr_opt:25 pdpe1gb:26 rdtscp:27 lm:29"),
    ("Naples", 0x8000_0001, 0, ECX, """lahf_lm:0 cr8legacy:4 abm:5 sse4a:6 misalignsse:7 3dnowprefetch:8 osvw:9
        perfctr_core:23"""),
    ("Naples", 0x8000_0007, 0, EBX, "overflow-recov:0 succor:1"),
    ("Naples", 0x8000_0008, 0, EBX, "clzero:0 xsaveerptr:2 ibpb:12"),
    ("Rome", 0x8000_0008, 0, EBX, "wbnoinvd:9 ibrs:14 amd-stibp:15 amd-ssbd:24"),
    ("Milan", 0x8000_0008, 0, EBX, "stibp-always-on:17 amd-psfd:28"),
    ("Milan", 0x8000_0021, 0, EAX, "no-nested-data-bp:0 lfence-always-serializing:2 null-sel-clr-base:6"),
    ("Genoa", 0x8000_0021, 0, EAX, "fs-gs-base-ns:1 auto-ibrs:8"),
    ("Turin", 0x8000_0021, 0, EAX, "prefetchi:20 sbpb:27 ibpb-brtype:28 srso-user-kernel-no:30"),
    ("Genoa", 0x8000_0022, 0, EAX, "perfmon-v2:0"),
)  # fmt: skip
_SHADOW_STACKS = CpuFeature("shstk", (7, 0), ECX, 7)

_LINES = ("Naples", "Rome", "Milan", "Genoa", "Turin")
_LINE_OF: Mapping[str, str] = {"Bergamo": "Genoa", "Siena": "Genoa"}
"""Parts of the same cores."""

_FIRST_OF: Mapping[CpuFeature, str] = {
    CpuFeature(name, (function, index), register, int(bit)): line
    for line, function, index, register, features in _ROWS
    for name, bit in (one.rsplit(":", 1) for one in features.split())
} | {_SHADOW_STACKS: "Milan"}
FEATURES: Mapping[str, CpuFeature] = {one.name: one for one in _FIRST_OF}
"""All that are known here, by name."""


@cache
def features_of(product: str, switches: CpuidSwitches = CpuidSwitches()) -> frozenset[str]:
    """Names of what a guest is shown on a line that hides nothing. Raises KeyError for an unknown line."""
    rank = _LINES.index(_LINE_OF.get(product, product)) if product in {*_LINES, *_LINE_OF} else -1
    if rank < 0:
        raise KeyError(product)
    found = {one.name for one, line in _FIRST_OF.items() if _LINES.index(line) <= rank}
    if switches.xsaves_before_milan:
        found.add("xsaves")
    if not switches.shadow_stacks:
        found.discard(_SHADOW_STACKS.name)
    return frozenset(found)


@cache
def feature_registers(features: frozenset[str]) -> Mapping[Leaf, Registers]:
    """Bits of these features, by leaf in the order of their functions."""
    found: dict[Leaf, list[int]] = {}
    for name in sorted(features, key=lambda one: FEATURES[one].leaf):
        one = FEATURES[name]
        found.setdefault(one.leaf, [0, 0, 0, 0])[one.register] |= 1 << one.bit
    return {leaf: (eax, ebx, ecx, edx) for leaf, (eax, ebx, ecx, edx) in found.items()}


@cache
def allowed_registers(features: frozenset[str]) -> Mapping[Leaf, Registers]:
    """For each leaf with features, the bits that a processor with these lets a guest be shown.

    All but those of the other features: of bits that no row names nothing is known.
    """
    lacking = feature_registers(frozenset(FEATURES) - features)
    none = (0, 0, 0, 0)
    leaves = dict.fromkeys(one.leaf for one in FEATURES.values())
    masks = {leaf: tuple([0xFFFF_FFFF & ~bits for bits in lacking.get(leaf, none)]) for leaf in leaves}
    return {leaf: (eax, ebx, ecx, edx) for leaf, (eax, ebx, ecx, edx) in masks.items()}
