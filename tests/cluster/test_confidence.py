"""Student's quantiles against published ones and closed forms; intervals against worked examples."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sweeps.confidence import interval_of, t_quantile

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: critical values of Student's t, one-sided.
PUBLISHED = {
    0.90: {1: 3.078, 2: 1.886, 3: 1.638, 5: 1.476, 10: 1.372, 30: 1.310, 100: 1.290},
    0.95: {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 10: 1.812, 20: 1.725, 30: 1.697, 100: 1.660},
    0.975: {
        1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
        15: 2.131, 20: 2.086, 25: 2.060, 30: 2.042, 40: 2.021, 60: 2.000, 100: 1.984,
    },
    0.99: {1: 31.821, 2: 6.965, 3: 4.541, 5: 3.365, 10: 2.764, 30: 2.457, 100: 2.364},
    0.995: {1: 63.657, 2: 9.925, 3: 5.841, 5: 4.032, 10: 3.169, 30: 2.750, 100: 2.626},
}  # fmt: skip


@pytest.mark.parametrize(
    ("probability", "freedom", "published"),
    [(probability, freedom, t) for probability, row in PUBLISHED.items() for freedom, t in row.items()],
)
def test_quantiles_are_those_of_the_published_table(probability: float, freedom: int, published: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(published, abs=0.0006)


@given(st.floats(0.001, 0.999))
def test_quantiles_are_the_closed_forms_of_one_and_two_degrees_of_freedom(probability: float) -> None:
    assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-9, abs=1e-12)
    spread = 4 * probability * (1 - probability)
    two = (2 * probability - 1) * math.sqrt(2 / spread)
    assert t_quantile(probability, 2) == pytest.approx(two, rel=1e-9, abs=1e-12)


def test_quantiles_of_many_degrees_of_freedom_are_the_normal_ones() -> None:
    for probability in (0.6, 0.975, 0.995):
        assert t_quantile(probability, 2_000) == pytest.approx(NormalDist().inv_cdf(probability), rel=1e-3)


def test_an_interval_is_that_of_a_worked_example() -> None:
    # 1 to 5: mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776.
    found = interval_of([4.0, 1.0, 5.0, 3.0, 2.0])
    assert (found.n, found.mean, found.least, found.most) == (5, 3.0, 1.0, 5.0)
    assert found.half_width == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=2e-4)


def test_an_interval_is_that_of_the_handbook() -> None:
    # NIST/SEMATECH 1.3.5.2, ZARR13.DAT: 195 values, standard deviation 0.022789, half of 9.264679 - 9.258242.
    assert t_quantile(0.975, 194) * 0.022789 / math.sqrt(195) == pytest.approx((9.264679 - 9.258242) / 2, rel=2e-4)


def test_nobody_knows_how_far_to_trust_a_single_value() -> None:
    assert interval_of([7.0]).half_width is None
    assert interval_of([7.0, 7.0]).half_width == 0.0


@given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_values_does_not_change_a_bit(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert interval_of(shuffled) == interval_of(values)
