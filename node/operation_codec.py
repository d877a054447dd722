"""How operations, their answers, and what else passes between processes of one host become bytes, and back.

``KINDS`` numbers every type that crosses. A value of such a type is an array of
its number and its fields; everything else of it follows from the types that its
fields are declared with. Parsing checks each field against its declaration: what
does not fit raises CodecError and becomes no object.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from operator import attrgetter
from typing import Any

import msgpack

from node import operations as op
from node.guest_memory_map import GuestMemoryMap
from node.hypervisor_port import Entered, HypervisorFigures
from node.kernel_settings import KernelSettings
from node.machine_spec import MachineSpec
from node.packing import Unmade
from node.port_window import PortWindow
from node.program import Demand, ProgramSpec, Registers
from node.svsm_memory import SvsmGuest
from node.tenant import TenantSpec
from node.vm_state import VmState
from psp.system_bus import RmpEntry

KINDS: Mapping[int, type] = {
    # Operations of guests.
    1: op.Read,
    2: op.Write,
    226: op.UpkeepRead,
    227: op.UpkeepWrite,
    3: op.PValidate,
    4: op.PageStateChange,
    5: op.BlockRead,
    6: op.BlockWrite,
    7: op.RmpAdjust,
    8: op.RmpQuery,
    9: op.Clflush,
    10: op.VirtualRead,
    11: op.VirtualWrite,
    12: op.Fetch,
    13: op.WriteControl,
    14: op.InvalidatePage,
    15: op.TimedRead,
    45: op.VmgExit,
    46: op.ReadSevStatus,
    47: op.Cpuid,
    96: op.ReadDr7,
    97: op.WriteDr7,
    210: op.Clear,
    211: op.GuestWork,
    98: op.Copy,
    110: op.LoadIdt,
    111: op.ReadFlags,
    112: op.WriteFlags,
    113: op.SoftwareInterrupt,
    150: op.Branch,
    151: op.IndirectBranch,
    155: op.StackMove,
    156: op.Arithmetic,
    140: op.MmioLoad,
    141: op.MmioStore,
    160: op.Rdmsr,
    161: op.Wrmsr,
    162: op.PortIn,
    163: op.PortOut,
    164: op.WriteBackCaches,
    165: op.ReadTsc,
    166: op.PortInString,
    167: op.PortOutString,
    168: op.ReadRandom,
    # Operations of hypervisors.
    16: op.HostRead,
    17: op.HostReadWritten,
    18: op.HostWrite,
    228: op.PaidRead,
    229: op.PaidWrite,
    230: op.PaidClear,
    19: op.HostClear,
    20: op.HostWork,
    21: op.RmpUpdate,
    22: op.PSmash,
    23: op.NestedMap,
    24: op.NestedUnmap,
    55: op.NestedBuild,
    25: op.VmcbWrite,
    26: op.VmRun,
    27: op.VmcbClear,
    28: op.DiskRead,
    29: op.DiskWrite,
    30: op.PspCommand,
    31: op.Wbinvd,
    32: op.RmpRead,
    33: op.HostClflush,
    34: op.Invd,
    35: op.VmPageFlush,
    40: op.ReadMsr,
    41: op.WriteMsr,
    42: op.MmioRead,
    43: op.FabricRoute,
    44: op.HostTimedRead,
    63: op.FabricDivert,
    36: op.NestedFrames,
    37: op.MmioWrite,
    38: op.DeviceRead,
    39: op.DeviceWrite,
    240: op.ConfigRead,
    241: op.ConfigWrite,
    242: op.ConfigIn,
    243: op.ConfigOut,
    244: op.CardUpdate,
    245: op.CardDebug,
    120: op.VmPreempt,
    130: op.VmcbLoad,
    131: op.VmcbStore,
    132: op.VmKick,
    154: op.TraceFaults,
    152: op.HostBranch,
    153: op.HostReadCounter,
    142: op.NicRead,
    143: op.NicWrite,
    220: op.FetchCertificates,
    221: op.AskLaunchOwner,
    222: op.AgentCall,
    223: op.SwapRowOut,
    224: op.SwapRowIn,
    225: op.DevicesTold,
    231: op.HandlerCall,
    # Answers.
    48: op.Fault,
    49: op.PValidateResult,
    50: op.PspAnswer,
    51: op.Runs,
    52: op.RmpQueryResult,
    53: op.RmpReadResult,
    54: op.CpuidResult,
    # Ends of blocks.
    64: op.Compute,
    65: op.Sleep,
    66: op.Shutdown,
    114: op.Await,
    # What these are made of, what a hypervisor is told and says, and what a tenant is made of.
    80: RmpEntry,
    81: MachineSpec,
    82: Entered,
    83: HypervisorFigures,
    84: VmState,
    94: PortWindow,
    85: GuestMemoryMap,
    86: ProgramSpec,
    87: TenantSpec,
    88: Demand,
    89: KernelSettings,
    212: SvsmGuest,
}
"""To add a type, add a line."""

_NUMBER_OF = {kind: number for number, kind in KINDS.items()}
_SCALARS = frozenset({int, bool, str, bytes, float, types.NoneType})
_REGISTERS = struct.Struct(f"<{len(Registers.__slots__)}Q")
_values = attrgetter(*Registers.__slots__)


class CodecError(ValueError):
    """Bytes that are not what they should be; names the field, what was expected and what was got."""


@dataclass(frozen=True, slots=True)
class Form:
    """How values of one declared type are packed into what msgpack takes, and parsed from what it gives."""

    pack: Callable[[Any], Any]
    parse: Callable[[Any], Any]


def packed(value: object) -> bytes:
    """Values as ``Form.pack`` leaves them, as bytes."""
    data: bytes = msgpack.packb(value)
    return data


def unpacked(data: bytes) -> Any:
    """What ``packed`` was given, for ``Form.parse``. Raises CodecError."""
    try:
        return msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except Exception as error:
        raise CodecError(f"bytes: expected msgpack, got {type(error).__name__}") from error


def packed_registers(registers: Registers) -> bytes:
    """The registers as 64-bit words, in the order of their names in ``Registers``."""
    return _REGISTERS.pack(*_values(registers))


def load_packed_registers(data: object, registers: Registers) -> None:
    """Set registers from ``packed_registers``. Raises CodecError."""
    if type(data) is not bytes or len(data) != _REGISTERS.size:
        raise CodecError(f"registers: expected {_REGISTERS.size} bytes, got {_shown(data)}")
    for name, value in zip(Registers.__slots__, _REGISTERS.unpack(data), strict=True):
        setattr(registers, name, value)


@cache
def form_of(declared: Any) -> Form:
    """The form of a declared type: a scalar, an enumeration, a tuple, a union, or a type of ``KINDS``."""
    if declared in _SCALARS or declared is None:
        return _union((declared or types.NoneType,))
    if isinstance(declared, type) and issubclass(declared, Enum):
        return Form(lambda value: value.name, lambda data: _member(declared, data))
    if declared in _NUMBER_OF:
        return _union((declared,))
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return _union(parts)
    assert origin is tuple, f"{declared}: expected a type that crosses"
    if parts[1:] == (Ellipsis,):
        return _row_of(form_of(parts[0]))
    return _tuple_of([form_of(part) for part in parts])


def _row_of(each: Form) -> Form:
    """As many values of one type as there are."""
    pack, parse = each.pack, each.parse
    return Form(lambda values: [pack(one) for one in values], lambda data: tuple([parse(one) for one in _row(data)]))


def _tuple_of(forms: list[Form]) -> Form:
    def parse(data: Any) -> tuple[Any, ...]:
        if len(_row(data)) != len(forms):
            raise CodecError(f"array: expected {len(forms)} values, got {len(data)}")
        return tuple([form.parse(one) for form, one in zip(forms, data, strict=True)])

    return Form(lambda values: [form.pack(one) for form, one in zip(forms, values, strict=True)], parse)


def _union(members: tuple[type, ...]) -> Form:
    """Scalars cross as they are, others as arrays that begin with their number."""
    unmade = [one for one in members if issubclass(one, Unmade)]
    members = tuple([one for one in members if not issubclass(one, Unmade)])
    scalars = frozenset(one for one in members if one in _SCALARS)
    if float in scalars:
        scalars |= {int}  # as everywhere in Python, a whole number will do
    kinds = {_NUMBER_OF[one]: _kind_form(one) for one in members if one not in _SCALARS}
    by_type = {KINDS[number]: form.pack for number, form in kinds.items()}
    for one in unmade:  # They cross as what they stand for.
        by_type[one] = one.made
    expected = " or ".join(sorted(getattr(one, "__name__", str(one)) for one in members))

    def pack(value: Any) -> Any:
        packs = by_type.get(type(value))
        return value if packs is None else packs(value)

    def parse(data: Any) -> Any:
        if type(data) in scalars:
            return data
        form = kinds.get(data[0]) if type(data) is tuple and data and type(data[0]) is int else None
        if form is None:
            raise CodecError(f"value: expected {expected}, got {_shown(data)}")
        return form.parse(data)

    return Form(pack, parse)


def _kind_form(kind: type) -> Form:
    """The form of one type of ``KINDS``."""
    number = _NUMBER_OF[kind]
    declared = typing.get_type_hints(kind)
    names = list(getattr(kind, "_fields", ())) or [one.name for one in dataclasses.fields(kind)]
    forms = [form_of(declared[name]) for name in names]
    exact = tuple(declared[name] for name in names)
    plain = all(one in _SCALARS for one in exact)
    count = len(names) + 1
    values = _getter(names)

    def pack(value: Any) -> Any:
        if plain:
            return (number, *values(value))
        return (number, *[form.pack(one) for form, one in zip(forms, values(value), strict=True)])

    def parse(data: tuple[Any, ...]) -> Any:
        fields = data[1:]
        if not plain or tuple(map(type, fields)) != exact:
            if len(data) != count:
                raise CodecError(f"{kind.__name__}: expected {count - 1} fields, got {len(fields)}")
            fields = tuple(map(partial(_field, kind), names, forms, fields))
        try:
            return kind(*fields)
        except ValueError as error:
            raise CodecError(f"{kind.__name__}: {error}") from error

    return Form(pack, parse)


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    # attrgetter gives the value of a single name bare, and takes no less than one.
    return lambda value: tuple([getattr(value, name) for name in names])


def _field(kind: type, name: str, form: Form, data: Any) -> Any:
    try:
        return form.parse(data)
    except CodecError as error:
        raise CodecError(f"{kind.__name__}.{name}: {error}") from error


def _member(declared: type[Enum], data: Any) -> Enum:
    found = declared.__members__.get(data) if type(data) is str else None
    if found is None:
        raise CodecError(f"value: expected a {declared.__name__}, got {_shown(data)}")
    return found


def _row(data: Any) -> tuple[Any, ...]:
    if type(data) is not tuple:
        raise CodecError(f"value: expected an array, got {_shown(data)}")
    return data


def _shown(data: object) -> str:
    """A value for an error: its type where it may be long, or somebody's secret."""
    return str(data) if type(data) in (int, bool, types.NoneType) else f"{type(data).__name__}"
