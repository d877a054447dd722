"""The points of small order, each checked by arithmetic of its own, and how a scalar comes out of its residues."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.attacks.invalid_curve import Squares, small_order_points

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
B = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
"""Of P-384 (FIPS 186, D.2.4)."""


def plus(one, other):
    """The sum in affine coordinates; None is infinity."""
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % P == 0:
        return None
    slope = (3 * x * x - 3) * pow(2 * y, -1, P) if one == other else (v - y) * pow(u - x, -1, P)
    found = (slope * slope - x - u) % P
    return found, (slope * (x - found) - y) % P


def times(number, point):
    found = None
    for bit in f"{number:b}":
        found = plus(found, found)
        found = plus(found, point) if bit == "1" else found
    return found


def test_each_point_has_the_prime_order_that_the_table_says_and_is_not_on_p_384():
    for one in small_order_points():
        assert all(one.order % divisor for divisor in range(2, math.isqrt(one.order) + 1))
        assert (one.y**2 - one.x**3 + 3 * one.x) % P != B
        assert times(one.order, (one.x, one.y)) is None


def test_the_orders_are_enough_for_the_square_of_every_scalar():
    orders = [one.order for one in small_order_points()]
    assert len(set(orders)) == len(orders)
    assert math.prod(orders) > 2**768


def test_the_attacker_s_guesses_are_all_points_that_may_be_shared():
    for one in small_order_points()[:8]:
        shared = {times(number, (one.x, one.y)) for number in range(1, one.order)}
        assert set(one.multiples()) == {bytes(48)} | {x.to_bytes(48, "big") for x, _ in shared}


@given(st.integers(0, 2**384 - 1), st.data())
@settings(max_examples=10)
def test_a_scalar_follows_from_its_residues_whatever_their_signs(scalar, data):
    known = Squares()
    for one in small_order_points():
        sign = data.draw(st.sampled_from((1, -1)))
        known.learn(sign * scalar % one.order, one.order)
    assert known.scalar() == scalar
