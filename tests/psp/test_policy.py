"""The least API version that a guest's policy asks for, held against the firmware's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from psp.policy import PlatformFacts, SnpPolicy, check_legacy_policy, check_snp_policy
from psp.status import PspError, Status


def _legacy(major: int, minor: int) -> None:
    # SEV API, table of the guest policy: API_MAJOR in bits 23:16, API_MINOR in 31:24.
    check_legacy_policy(major << 16 | minor << 24, PlatformFacts((1, 55), smt_enabled=False))


def _snp(major: int, minor: int) -> None:
    # SEV-SNP firmware ABI, table of the guest policy: ABI_MINOR in bits 7:0, ABI_MAJOR in 15:8.
    check_snp_policy(SnpPolicy.RESERVED_ONE | major << 8 | minor, PlatformFacts((1, 55), smt_enabled=False))


@pytest.mark.parametrize("check", [_legacy, _snp])
@pytest.mark.parametrize(
    ("major", "minor", "met"),
    [(0, 0, True), (0, 255, True), (1, 0, True), (1, 54, True), (1, 55, True), (1, 56, False), (1, 255, False),
     (2, 0, False), (255, 0, False)],
)  # fmt: skip
def test_firmware_below_what_a_policy_asks_for_starts_no_guest(
    check: Callable[[int, int], None], major: int, minor: int, met: bool
) -> None:
    if met:
        check(major, minor)
        return
    with pytest.raises(PspError) as refused:
        check(major, minor)
    assert refused.value.status is Status.POLICY_FAILURE
