"""A TPM 2.0 of few commands: bytes in, bytes out, with its state as bytes that its owner keeps.

TPM2_Startup, TPM2_GetRandom, TPM2_PCR_Extend and TPM2_PCR_Read, with banks of SHA-256 and SHA-384.
Random numbers follow from a seed that is declared, and a counter. Structures and codes: TCG TPM 2.0 Library, parts
2 and 3; which PCRs a locality may extend: TCG PC Client Platform TPM Profile, section 4.6. A malformed command gets the
response code of the specification and changes nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

NO_SESSIONS, SESSIONS = 0x8001, 0x8002
"""Tags of commands and responses."""
_HEADER = struct.Struct(">HII")
PASSWORD_SESSION = 0x4000_0009
_PASSWORD_RESPONSE = bytes.fromhex("0000 01 0000")
"""No nonce, continueSession, no HMAC."""
PCRS = 24
_SELECT_BYTES = 3
_MOST_DIGESTS = 8
"""Of one PCR_Read (TPML_DIGEST)."""
SEED_BYTES = 32


class TpmCommand(IntEnum):
    """Command codes that are served."""

    STARTUP = 0x144
    GET_RANDOM = 0x17B
    PCR_READ = 0x17E
    PCR_EXTEND = 0x182


class TpmCode(IntEnum):
    """Response codes."""

    SUCCESS = 0
    BAD_TAG = 0x1E
    INITIALIZE = 0x100
    AUTH_MISSING = 0x125
    COMMAND_SIZE = 0x142
    COMMAND_CODE = 0x143
    AUTHSIZE = 0x144
    AUTH_CONTEXT = 0x145
    HASH = 0x83
    VALUE = 0x84
    SIZE = 0x95
    INSUFFICIENT = 0x9A
    LOCALITY = 0x907
    AUTH_FAIL = 0x8E


PARAMETER, HANDLE, SESSION = 0x40, 0x000, 0x800
"""Added to a format-one code, with the number of what is wrong in bits 11:8."""


class _Refused(Exception):
    """A command that ends in another response code than success."""

    def __init__(self, code: int) -> None:
        super().__init__(hex(code))
        self.code = code


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank of PCRs: TPM_ALG_ID and the digest that extends it."""

    algorithm: int
    name: str
    digest_bytes: int


BANKS = (Bank(0x000B, "sha256", 32), Bank(0x000C, "sha384", 48))
_BANK_OF = {bank.algorithm: number for number, bank in enumerate(BANKS)}
_STATE = struct.Struct("<B3xIQ")
STATE_BYTES = _STATE.size + sum(PCRS * bank.digest_bytes for bank in BANKS)

_LOCKED = range(17, 23)
"""PCRs of dynamic launch: all ones after a reset, and closed to locality 0."""


@dataclass(frozen=True, slots=True)
class TpmState:
    """What a TPM knows but for its seed: whether it was started, how often PCRs changed, and the banks."""

    started: bool = False
    updates: int = 0
    drawn: int = 0
    """How many times random bytes were asked for."""
    pcrs: tuple[tuple[bytes, ...], ...] = tuple(tuple(bytes(bank.digest_bytes) for _ in range(PCRS)) for bank in BANKS)

    @classmethod
    def parse(cls, data: bytes) -> TpmState:
        """From ``STATE_BYTES`` bytes; all zeros are a TPM that was never started."""
        started, updates, drawn = _STATE.unpack_from(data)
        at, pcrs = _STATE.size, []
        for bank in BANKS:
            size = bank.digest_bytes
            pcrs.append(tuple(data[at + number * size : at + (number + 1) * size] for number in range(PCRS)))
            at += PCRS * size
        return cls(bool(started), updates, drawn, tuple(pcrs))

    def pack(self) -> bytes:
        """As bytes, for ``parse``."""
        head = _STATE.pack(self.started, self.updates, self.drawn)
        return head + b"".join(b"".join(bank) for bank in self.pcrs)


def execute(state: TpmState, seed: bytes, command: bytes) -> tuple[TpmState, bytes]:
    """The state after a command, and the response."""
    try:
        new, tag, body = _execute(state, seed, command)
    except _Refused as refused:
        return state, _HEADER.pack(NO_SESSIONS, _HEADER.size, refused.code)
    return new, _HEADER.pack(tag, _HEADER.size + len(body), TpmCode.SUCCESS) + body


def _execute(state: TpmState, seed: bytes, command: bytes) -> tuple[TpmState, int, bytes]:
    if len(command) < _HEADER.size:
        raise _Refused(TpmCode.COMMAND_SIZE)
    tag, size, code = _HEADER.unpack_from(command)
    if tag not in (NO_SESSIONS, SESSIONS):
        raise _Refused(TpmCode.BAD_TAG)
    if size != len(command):
        raise _Refused(TpmCode.COMMAND_SIZE)
    serve = _COMMANDS.get(code)
    if serve is None:
        raise _Refused(TpmCode.COMMAND_CODE)
    if state.started == (code == TpmCommand.STARTUP):
        raise _Refused(TpmCode.INITIALIZE)
    if serve.authorised != (tag == SESSIONS):
        raise _Refused(TpmCode.AUTH_MISSING if serve.authorised else TpmCode.AUTH_CONTEXT)
    new, body = serve.does(state, seed, _Reader(command[_HEADER.size :]))
    if serve.authorised:
        body = struct.pack(">I", len(body)) + body + _PASSWORD_RESPONSE
    return new, tag, body


class _Reader:
    """Takes big-endian fields from the front; whoever asks for more than there is is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, length: int, code: int) -> bytes:
        if length > len(self._data):
            raise _Refused(code)
        found, self._data = self._data[:length], self._data[length:]
        return found

    def number(self, width: int, parameter: int = 1) -> int:
        return int.from_bytes(self.take(width, _of_parameter(TpmCode.INSUFFICIENT, parameter)), "big")

    def end(self) -> None:
        if self._data:
            raise _Refused(TpmCode.SIZE)


def _of_parameter(code: int, number: int) -> int:
    return code | PARAMETER | number << 8


def _startup(state: TpmState, _seed: bytes, reader: _Reader) -> tuple[TpmState, bytes]:
    kind = reader.number(2)
    reader.end()
    if kind:  # TPM_SU_STATE: nothing was saved
        raise _Refused(_of_parameter(TpmCode.VALUE, 1))
    pcrs = tuple(
        tuple((b"\xff" if number in _LOCKED else b"\0") * bank.digest_bytes for number in range(PCRS)) for bank in BANKS
    )
    return replace(state, started=True, pcrs=pcrs), b""


def _get_random(state: TpmState, seed: bytes, reader: _Reader) -> tuple[TpmState, bytes]:
    wanted = min(reader.number(2), BANKS[-1].digest_bytes)
    reader.end()
    octets = hashlib.shake_256(b"TPM2_GetRandom" + seed + state.drawn.to_bytes(8, "big")).digest(wanted)
    return replace(state, drawn=state.drawn + 1), struct.pack(">H", wanted) + octets


def _pcr_read(state: TpmState, _seed: bytes, reader: _Reader) -> tuple[TpmState, bytes]:
    count = reader.number(4)
    if count > 16:
        raise _Refused(_of_parameter(TpmCode.SIZE, 1))
    asked = []
    for _ in range(count):
        algorithm, size = reader.number(2), reader.number(1)
        if algorithm not in _BANK_OF:
            raise _Refused(_of_parameter(TpmCode.HASH, 1))
        if size != _SELECT_BYTES:
            raise _Refused(_of_parameter(TpmCode.VALUE, 1))
        asked.append((algorithm, int.from_bytes(reader.take(size, _of_parameter(TpmCode.INSUFFICIENT, 1)), "little")))
    reader.end()
    digests: list[bytes] = []
    selections = b""
    for algorithm, bits in asked:
        given = 0
        for number in range(PCRS):
            if bits >> number & 1 and len(digests) < _MOST_DIGESTS:
                digests.append(state.pcrs[_BANK_OF[algorithm]][number])
                given |= 1 << number
        selections += struct.pack(">HB", algorithm, _SELECT_BYTES) + given.to_bytes(_SELECT_BYTES, "little")
    values = b"".join(struct.pack(">H", len(digest)) + digest for digest in digests)
    head = struct.pack(">II", state.updates, len(asked))
    return state, head + selections + struct.pack(">I", len(digests)) + values


def _pcr_extend(state: TpmState, _seed: bytes, reader: _Reader) -> tuple[TpmState, bytes]:
    number = int.from_bytes(reader.take(4, TpmCode.INSUFFICIENT | 1 << 8), "big")
    _expect_password(reader)
    count = reader.number(4)
    if count > len(BANKS):
        raise _Refused(_of_parameter(TpmCode.SIZE, 1))
    pcrs = [list(bank) for bank in state.pcrs]
    extended = 0
    for _ in range(count):
        bank = _BANK_OF.get(reader.number(2))
        if bank is None:
            raise _Refused(_of_parameter(TpmCode.HASH, 1))
        digest = reader.take(BANKS[bank].digest_bytes, _of_parameter(TpmCode.INSUFFICIENT, 1))
        if number < PCRS:
            pcrs[bank][number] = hashlib.new(BANKS[bank].name, pcrs[bank][number] + digest).digest()
        extended += 1
    reader.end()
    if number == _NULL_HANDLE:
        return state, b""
    if number >= PCRS:
        raise _Refused(TpmCode.VALUE | 1 << 8)
    if number in _LOCKED:
        raise _Refused(TpmCode.LOCALITY)
    return replace(state, updates=state.updates + extended, pcrs=tuple(map(tuple, pcrs))), b""


_NULL_HANDLE = 0x4000_0007
"""TPM_RH_NULL, which extends nothing."""


def _expect_password(reader: _Reader) -> None:
    """One session: the empty password, which is that of every PCR."""
    size = int.from_bytes(reader.take(4, TpmCode.AUTHSIZE), "big")
    if size < 9:
        raise _Refused(TpmCode.AUTHSIZE)
    area = reader.take(size, TpmCode.AUTHSIZE)
    handle, nonce = struct.unpack_from(">IH", area)
    if handle != PASSWORD_SESSION or nonce or size != 9 + int.from_bytes(area[7:9], "big"):
        raise _Refused(TpmCode.VALUE | SESSION | 1 << 8)
    if size > 9:
        raise _Refused(TpmCode.AUTH_FAIL | SESSION | 1 << 8)


@dataclass(frozen=True, slots=True)
class _Command:
    does: Callable[[TpmState, bytes, _Reader], tuple[TpmState, bytes]]
    authorised: bool = False


_COMMANDS: Mapping[int, _Command] = {
    TpmCommand.STARTUP: _Command(_startup),
    TpmCommand.GET_RANDOM: _Command(_get_random),
    TpmCommand.PCR_READ: _Command(_pcr_read),
    TpmCommand.PCR_EXTEND: _Command(_pcr_extend, authorised=True),
}
