import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.units import DURATION, FREQUENCY, LARGEST, RATE, SIZE, Quantity, UnitError

QUANTITIES = [SIZE, DURATION, RATE, FREQUENCY]


@pytest.mark.parametrize(
    ("quantity", "text", "base"),
    [
        (SIZE, "4 GiB", 4 << 30),
        (SIZE, "1.5MiB", 3 << 19),
        (SIZE, "2 kB", 2000),
        (SIZE, "0 B", 0),
        (DURATION, "30 s", 30 * 10**9),
        (DURATION, "1 h", 3600 * 10**9),
        (DURATION, "250 ms", 250 * 10**6),
        (DURATION, "0.5 us", 500),
        (DURATION, "0.5 µs", 500),
        (DURATION, "2 min", 120 * 10**9),
        (DURATION, "1 d", 86400 * 10**9),
        (RATE, "10 Gb/s", 1_250_000_000),
        (RATE, "10 GB/s", 10_000_000_000),
        (RATE, "73786976294838206456 b/s", LARGEST),
        (RATE, "0" * 30 + "8 b/s", 1),
        (RATE, "1 KiB/s", 1024),
        (FREQUENCY, "2.5 GHz", 2_500_000_000),
    ],
)
def test_units_mean_what_people_mean(quantity: Quantity, text: str, base: int) -> None:
    assert quantity.parse(text) == base


@pytest.mark.parametrize(
    ("quantity", "text", "expected"),
    [
        (SIZE, "4", 'a size such as "4 GiB"'),
        (SIZE, "4 gib", 'a size such as "4 GiB"'),
        (SIZE, "-4 GiB", 'a size such as "4 GiB"'),
        (SIZE, "4 s", 'a size such as "4 GiB"'),
        (SIZE, "4,5 GiB", 'a size such as "4 GiB"'),
        (SIZE, "\u0664 GiB", 'a size such as "4 GiB"'),  # an Arabic digit
        (SIZE, 4096, 'a size such as "4 GiB"'),
        (SIZE, None, 'a size such as "4 GiB"'),
        (SIZE, "0.3 B", "a whole number of bytes"),
        (SIZE, "9999999999 TiB", "a size below 2^63 bytes"),
        (DURATION, "1e3 s", 'a time such as "30 s"'),
        (DURATION, "nan s", 'a time such as "30 s"'),
        (DURATION, "0.1 ns", "a whole number of nanoseconds"),
        (RATE, "1 b/s", "a whole number of bytes per second"),
        (SIZE, "9" * 10_000 + " B", "a size below 2^63 bytes"),
        (SIZE, "9223372036854775807.5 B", "a whole number of bytes"),
        (SIZE, "9223372036854775808 B", "a size below 2^63 bytes"),
        (RATE, "73786976294838206457 b/s", "a whole number of bytes per second"),
        (RATE, "73786976294838206464 b/s", "a rate below 2^63 bytes per second"),
        (RATE, "9" * 20 + " b/s", "a rate below 2^63 bytes per second"),
        (RATE, "1" + "0" * 20 + " b/s", "a rate below 2^63 bytes per second"),
        (DURATION, "1" + "0" * 30 + ".5 ns", "a time below 2^63 nanoseconds"),
        (SIZE, "0" * 1_000_000, 'a size such as "4 GiB"'),
    ],
)
def test_a_text_that_is_no_quantity_is_refused_with_what_was_expected(
    quantity: Quantity, text: object, expected: str
) -> None:
    with pytest.raises(UnitError) as refusal:
        quantity.parse(text)
    assert refusal.value.expected.startswith(expected)
    assert len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)


@given(st.sampled_from(QUANTITIES), st.integers(0, LARGEST))
def test_what_is_formatted_parses_to_the_same_integer(quantity: Quantity, value: int) -> None:
    assert quantity.parse(quantity.format(value)) == value


@given(st.sampled_from(QUANTITIES), st.text(max_size=80))
def test_any_text_parses_or_is_refused(quantity: Quantity, text: str) -> None:
    try:
        assert 0 <= quantity.parse(text) <= LARGEST
    except UnitError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [(SIZE, 3 << 29, "1.5 GiB"), (SIZE, 0, "0 B"), (DURATION, 5400 * 10**9, "1.5 h"), (DURATION, 1, "1 ns")],
)
def test_people_see_the_largest_unit_that_fits(quantity: Quantity, value: int, text: str) -> None:
    assert quantity.format(value) == text


def test_tables_show_three_digits() -> None:
    assert [DURATION.about(ns) for ns in (0, 1234, 1_234_567_890, 3600 * 10**9)] == ["0 ns", "1.23 us", "1.23 s", "1 h"]
    assert SIZE.about(200 << 20) == "200 MiB"
