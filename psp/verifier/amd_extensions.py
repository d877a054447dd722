"""What AMD's extensions say about a chip and its TCB (KDS specification 57230, "VCEK Certificate Format")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psp.verifier import der
from psp.verifier.certificate import Extension
from psp.verifier.product_line import ProductLine

_AMD = "1.3.6.1.4.1.3704.1."
_STRUCTURE_VERSION, _PRODUCT_NAME, _HARDWARE_ID, _CSP_ID = (f"{_AMD}{suffix}" for suffix in ("1", "2", "4", "5"))
_COMPONENTS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED = tuple(f"{_AMD}3.{at}" for at in range(4, 8))
"""Zeros; Turin's certificates leave the first out."""
_MOST_SVN = 255


@dataclass(frozen=True, slots=True)
class Endorsement:
    """What a VCEK or VLEK certificate vouches for. ``chip_id`` is None in a VLEK's, ``csp_id`` in a VCEK's."""

    product: str
    tcb: bytes
    chip_id: bytes | None
    csp_id: str | None


def read_endorsement(extensions: Mapping[str, Extension], line: ProductLine, *, vlek: bool) -> Endorsement:
    """The extensions of a certificate of a line. Raises DerError for any that is missing, critical, wrong or new."""
    components = {name: f"{_AMD}{_COMPONENTS[name]}" for name, _ in line.layout.components}
    owner = _CSP_ID if vlek else _HARDWARE_ID
    must = {_STRUCTURE_VERSION, _PRODUCT_NAME, owner, *components.values()}
    found = extensions.keys()
    if not must <= found or found - must - set(_RESERVED):
        odd = sorted((must - found) | (found - must - set(_RESERVED)))
        raise der.DerError(f"extension {odd[0]}")
    if any(extension.critical for extension in extensions.values()):
        raise der.DerError("a critical one")
    version = _number(extensions[_STRUCTURE_VERSION])
    if version != line.structure_version:
        raise der.DerError(f"structVersion {version}")
    if any(kind in extensions and _number(extensions[kind]) for kind in _RESERVED):
        raise der.DerError("a reserved SPL that is not zero")
    levels = {name: _number(extensions[kind]) for name, kind in components.items()}
    if any(level > _MOST_SVN for level in levels.values()):
        raise der.DerError("an SPL above 255")
    value = extensions[owner].value
    return Endorsement(
        _text(extensions[_PRODUCT_NAME].value),
        line.layout.pack(levels),
        None if vlek else _hardware_id(value, line.chip_id_bytes),
        _text(value) if vlek else None,
    )


def _number(extension: Extension) -> int:
    return der.integer(der.only(extension.value, der.INTEGER))


def _text(value: bytes) -> str:
    return der.text(der.only(value, der.IA5_STRING))


def _hardware_id(value: bytes, size: int) -> bytes:
    """The raw id; some files wrap it in an octet string of its own."""
    if len(value) != size:
        value = der.only(value, der.OCTET_STRING).body
    if len(value) != size:
        raise der.DerError(f"a hwID of {len(value)} bytes")
    return value
