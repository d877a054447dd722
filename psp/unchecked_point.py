"""ECDH on P-384 as firmware did it that asked of a point no more than two coordinates (CVE-2019-9836, CVE-2021-26408).

The formulas of y^2 = x^3 - 3x + b never use b. A point that is not on P-384 is on another curve of the same form, and
is multiplied there, where its order may be small: then the result tells the scalar modulo that order.
"""

from __future__ import annotations

from psp.elliptic import COORDINATE_BYTES, FIELD

_Jacobian = tuple[int, int, int]
"""X, Y, Z of the point (X / Z^2, Y / Z^3); Z is 0 at infinity."""
_INFINITY = (1, 1, 0)


def unchecked_secret(scalar: int, x: int, y: int) -> bytes:
    """The x coordinate of a multiple, 48 bytes big-endian, whatever curve the point is on.

    Infinity gives zeros: what real firmware made of it is not published, and this is what a conversion to affine
    coordinates does that inverts by Fermat's theorem.
    """
    x, y = x % FIELD, y % FIELD
    at = _INFINITY
    for bit in f"{scalar:b}":
        at = _doubled(at)
        if bit == "1":
            at = _plus_affine(at, x, y)
    found = at[0] * pow(at[2] * at[2], FIELD - 2, FIELD) % FIELD
    return found.to_bytes(COORDINATE_BYTES, "big")


def _doubled(at: _Jacobian) -> _Jacobian:
    x, y, z = at
    if not z or not y:
        return _INFINITY
    square = y * y % FIELD
    z_square = z * z % FIELD
    s = 4 * x * square % FIELD
    m = 3 * (x - z_square) * (x + z_square) % FIELD
    x_doubled = (m * m - 2 * s) % FIELD
    return x_doubled, (m * (s - x_doubled) - 8 * square * square) % FIELD, 2 * y * z % FIELD


def _plus_affine(at: _Jacobian, x: int, y: int) -> _Jacobian:
    x_one, y_one, z = at
    if not z:
        return x, y, 1
    z_square = z * z % FIELD
    h = (x * z_square - x_one) % FIELD
    r = (y * z_square * z - y_one) % FIELD
    if not h:
        return _INFINITY if r else _doubled(at)
    h_square = h * h % FIELD
    v = x_one * h_square % FIELD
    h_cube = h * h_square % FIELD
    x_sum = (r * r - h_cube - 2 * v) % FIELD
    return x_sum, (r * (v - x_sum) - y_one * h_cube) % FIELD, z * h % FIELD
