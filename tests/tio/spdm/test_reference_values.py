"""What a verifier compares with what: digests with digests, bits with bits, and never one with the other."""

import hashlib

import pytest

from tio.spdm.algorithms import BaseHash
from tio.spdm.measurement import Measurement, ReferenceValue, ValueType, first_unlike, parse_record

BITS = b"firmware of the toy"
DIGEST = hashlib.sha384(BITS).digest()
AS_DIGEST, AS_BITS = ReferenceValue(2, DIGEST), ReferenceValue(2, BITS, raw=True)


def told(bits, *, raw, index=2):
    return parse_record(Measurement(index, ValueType.MUTABLE_FIRMWARE, bits).pack(BaseHash.SHA_384.value, raw=raw), 1)


@pytest.mark.parametrize(
    ("reference", "bits", "raw", "fits"),
    [
        (AS_DIGEST, BITS, False, True),
        (AS_DIGEST, BITS, True, True),
        (AS_DIGEST, DIGEST, True, False),
        (AS_DIGEST, DIGEST, False, False),
        (AS_BITS, BITS, True, True),
        (AS_BITS, BITS, False, False),
        # The digest of these bits is what the reference's bits are.
        (ReferenceValue(2, DIGEST, raw=True), BITS, False, False),
    ],
)
def test_a_block_fits_in_the_form_that_the_reference_means(reference, bits, raw, fits):
    blocks = told(bits, raw=raw)
    assert reference.fits(blocks[0]) is fits
    assert first_unlike((reference,), blocks) is (None if fits else reference)


def test_an_index_that_is_not_told_or_told_in_two_ways_is_unlike():
    good, other = told(BITS, raw=False), told(b"other", raw=False)
    assert first_unlike((AS_DIGEST,), told(BITS, raw=False, index=3)) is AS_DIGEST
    for blocks in (good + other, other + good):
        assert first_unlike((AS_DIGEST,), blocks) is AS_DIGEST
    assert first_unlike((AS_DIGEST,), good) is None
