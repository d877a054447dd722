"""A chip's id and endorsement keys follow from its fuses alone, and versioned keys can only be lowered."""

import hashlib
import hmac
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psp.chip_identity import ChipIdentity
from psp.product_line import PRODUCT_LINES, FmcPlace, ProductLine
from psp.tcb_version import TcbComponent, TcbLayout
from psp.vcek import chain_end, chain_versions, hashed, vcek_seed

FUSES = bytes(range(32))
ORDER_P384 = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
P = 2**256 - 2**32 - 977
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
MILAN, GENOA, TURIN = (PRODUCT_LINES[name] for name in ("Milan", "Genoa", "Turin"))
UP_TO_GENOA = ("Naples", "Rome", "Milan", "Genoa")


def chip(line: ProductLine = MILAN, fuses: bytes = FUSES) -> ChipIdentity:
    return ChipIdentity(line, lambda: fuses)


def add(a, b):
    """Of points on secp256k1 (SEC 1, 2.2.1)."""
    if a is None or b is None:
        return a or b
    rise, run = (3 * a[0] ** 2, 2 * a[1]) if a == b else (b[1] - a[1], b[0] - a[0])
    slope = rise * pow(run, -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiple(number: int):
    total, power = None, G
    while number:
        total = add(total, power) if number & 1 else total
        power, number = add(power, power), number >> 1
    return total


@pytest.mark.parametrize("name", UP_TO_GENOA)
def test_a_chip_id_up_to_genoa_is_the_point_of_its_fuses(name):
    x, y = multiple(int.from_bytes(FUSES, "big") + 1)
    assert chip(PRODUCT_LINES[name]).chip_id == x.to_bytes(32, "big") + y.to_bytes(32, "big")


def test_a_chip_id_of_turin_has_eight_bytes_and_is_no_part_of_the_secret():
    ids = {chip(TURIN, bytes([n]) * 32).chip_id for n in range(20)}
    assert {len(one) for one in ids} == {8}
    assert len(ids) == 20
    assert chip(TURIN).chip_id not in FUSES


def derived(key: bytes, label: str) -> int:
    """SP 800-108 with two blocks, then FIPS 186, B.4.1."""
    blocks = (
        hmac.digest(key, i.to_bytes(4, "little") + label.encode() + b"\0" + (448).to_bytes(4, "little"), "sha256")
        for i in (1, 2)
    )
    return int.from_bytes(b"".join(blocks)[:56], "little") % (ORDER_P384 - 1) + 1


def scalar(key) -> int:
    return key.private_numbers().private_value


def test_the_cek_is_derived_from_the_hash_of_the_fuses():
    assert scalar(chip().cek_key()) == derived(hashlib.sha256(FUSES).digest(), "sev-chip-endorsement-key")


@pytest.mark.parametrize("tcb", [0, 0x73_08_00000000_00_03, 0xFF_FF_FFFFFFFF_FF_FF])
def test_a_vcek_is_the_end_of_the_published_chain(tcb):
    seed = bytes(range(48))
    expected = seed
    for place, svn in enumerate(tcb.to_bytes(8, "little")):
        if place:
            expected = hashlib.sha384(b"\0" * 8 + expected).digest()
        for _ in range(svn, 255):
            expected = hashlib.sha384(expected).digest()
    expected = derived(hashlib.sha384(expected).digest(), "sev-versioned-chip-endorsement-key")
    assert int.from_bytes(vcek_seed(seed, MILAN, tcb), "little") % (ORDER_P384 - 1) + 1 == expected


@given(at=st.integers(0, 7), high=st.integers(0, 255), lower=st.integers(0, 255))
@settings(max_examples=10, deadline=None)
def test_firmware_can_compute_keys_of_lower_versions_from_what_it_holds(at, high, lower):
    # The boot loader of one version hands on the chain as far as itself.
    high, lower = max(high, lower), min(high, lower)
    held = chain_end(b"s" * 48, [200] * at + [high])
    assert hashed(held, high - lower) == chain_end(b"s" * 48, [200] * at + [lower])


def test_each_tcb_and_each_chip_has_a_key_of_its_own():
    tcbs = [0] + [1 << 8 * at for at in range(8)]
    keys = {scalar(chip(fuses=fuses).vcek_key(tcb)) for tcb in tcbs for fuses in (FUSES, b"x" * 32)}
    assert len(keys) == 2 * len(tcbs)


def test_the_fmc_of_turin_stands_first_or_last():
    tcb = TcbLayout.TURIN.pack({TcbComponent.FMC: 1, TcbComponent.BOOT_LOADER: 2, TcbComponent.MICROCODE: 9})
    last = replace(TURIN, fmc_place=FmcPlace.LAST)
    assert chain_versions(TURIN, tcb) == (1, 2, 0, 0, 0, 0, 0, 9)
    assert chain_versions(last, tcb) == (2, 0, 0, 0, 0, 0, 9, 1)
    assert scalar(chip(TURIN).vcek_key(tcb)) != scalar(chip(last).vcek_key(tcb))


@pytest.mark.parametrize("name", ["Naples", "Rome"])
def test_lines_before_sev_snp_have_no_vcek(name):
    with pytest.raises(ValueError, match="has no VCEK"):
        chip(PRODUCT_LINES[name]).vcek_key(0)


def test_keys_are_kept_for_a_few_tcbs_and_are_the_same_when_made_again():
    one = chip()
    first = one.vcek_key(0)
    assert one.vcek_key(0) is first
    for tcb in range(1, 6):
        one.vcek_key(tcb)
    again = one.vcek_key(0)
    assert again is not first
    assert scalar(again) == scalar(first)


def test_ten_thousand_chips_that_nobody_asks_draw_and_make_nothing():
    def draw() -> bytes:
        raise AssertionError

    chips = [ChipIdentity(GENOA, draw) for _ in range(10_000)]
    with pytest.raises(AssertionError):
        _ = chips[-1].chip_id


def test_a_secret_does_not_show_in_what_a_chip_prints():
    one = chip()
    one.vcek_key(0)
    assert FUSES.hex() not in repr(one)
    assert repr(FUSES) not in repr(one)


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        (TcbLayout.MILAN, ["bl", "tee", "spl_4", "spl_5", "spl_6", "spl_7", "snp", "ucode"]),
        (TcbLayout.TURIN, ["fmc", "bl", "tee", "snp", "spl_5", "spl_6", "spl_7", "ucode"]),
    ],
)
def test_a_tcb_version_has_its_components_in_the_bytes_of_its_product(layout, order):
    numbers = {component: at + 1 for at, component in enumerate(layout.value)}
    assert [component.value for component in layout.value] == order
    assert layout.pack(numbers).to_bytes(8, "little") == bytes(range(1, 9))
    assert layout.unpack(layout.pack(numbers)) == numbers


def test_a_tcb_version_refuses_components_it_has_not_and_numbers_beyond_a_byte():
    with pytest.raises(ValueError, match="MILAN has no fmc"):
        TcbLayout.MILAN.pack({TcbComponent.FMC: 1})
    with pytest.raises(ValueError, match="from 0 to 255"):
        TcbLayout.MILAN.pack({TcbComponent.SNP: 256})
    with pytest.raises(OverflowError):
        TcbLayout.MILAN.unpack(1 << 64)
