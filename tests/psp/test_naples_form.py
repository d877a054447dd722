"""An emulated platform's export beside a real Naples': but for keys, signatures and versions every byte is the same."""

import pytest
from owner import exported
from toy_machine import up

VERSION = range(0x04, 0x06)
KEY = (*range(0x14, 0x14 + 48), *range(0x5C, 0x5C + 48))
"""The two coordinates, of 48 bytes in fields of 72."""
SLOTS = {at: (*range(at, at + 48), *range(at + 72, at + 120)) for at in (0x41C, 0x624)}
"""R and S, likewise."""
SIGNED_BY_AMD = range(0x414, 0x61C)


@pytest.fixture(scope="module")
def pairs(test_data):
    pdh, chain = exported(up(snp=False))
    ours = {"pdh": pdh, **{name: chain[at * 0x824 :][:0x824] for at, name in enumerate(("pek", "oca", "cek"))}}
    real = test_data / "vectors"
    return {name: (octets, (real / f"naples-{name}.cert").read_bytes()) for name, octets in ours.items()}


@pytest.mark.parametrize("name", ["oca", "pek", "pdh", "cek"])
def test_a_certificate_has_the_form_of_a_real_one(pairs, name):
    ours, real = pairs[name]
    free = {*VERSION, *KEY, *SLOTS[0x41C], *SLOTS[0x624]}
    if name == "cek":  # The platform's own carries no signature yet.
        free |= set(SIGNED_BY_AMD)
    assert len(ours) == len(real)
    assert {at: (ours[at], real[at]) for at in range(len(real)) if at not in free and ours[at] != real[at]} == {}


def test_a_cek_leaves_the_place_for_amd_s_signature_empty(pairs):
    ours, real = pairs["cek"]
    assert (ours[0x414:0x418], real[0x414:0x418]) == (b"\x00\x10\x00\x00", b"\x13\x00\x00\x00")
    assert ours[0x418:0x61C] == bytes(0x204)


def test_every_certificate_s_numbers_fill_their_fields(pairs):
    """A field that is free above must not hide an empty key or signature."""
    for name, (ours, real) in pairs.items():
        for octets in (ours, real):
            assert all(any(octets[at : at + 48]) for at in (0x14, 0x5C)), name
            assert all(any(octets[at : at + 48]) for at in (0x41C, 0x41C + 72)) or (octets is ours and name == "cek")
    for octets in pairs["pek"]:
        assert all(any(octets[at : at + 48]) for at in (0x624, 0x624 + 72))
