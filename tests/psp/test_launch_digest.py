"""Launch digests against published answers (go-sev-guest's gce-tcb-verifier, virtee/sev, AMD's PAGE_INFO formula)."""

from __future__ import annotations

import hashlib

import pytest

from psp.launch_digest import LaunchDigest, LegacyLaunchDigest, PageType, launch_measure

ZERO_PAGE = bytes(4096)
LGTM_FIRST = (b"LGTM" * 4).ljust(4096, b"\0")
LGTM_LAST = (b"LGTM" * 4).rjust(4096, b"\0")


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([(PageType.NORMAL, 0, ZERO_PAGE)],
         "9d13634b6014bb21cf059b2dc694e7bff01a8a7137041100cd2b695f3d10fb687267b97808b27f8f471d943bc6f53a20"),
        ([(PageType.ZERO, 0, None)],
         "70c0ecaab9608f14ebf8ac6f0f07bcd8728f4e2ab30382b539b4de4de904ca9f8ebdf4b2cd3cd84dd996bd55dd794676"),
        ([(PageType.UNMEASURED, 0x1000, ZERO_PAGE)],
         "81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad"),
        ([(PageType.SECRETS, 0x80D000, None)],
         "e82e99caf82a32c31ec5070eef9e2135866d8f7de60d756814f3bd8c989c1e826622e0a97dad026c6d9d81818780e6a2"),
        ([(PageType.CPUID, 0x80E000, ZERO_PAGE)],
         "c9e46442d2b4ddb823fa6b4a907930de7e93901180c5a3126ba234193059a0a51a21ba82f05d2fe0f3136f22b1b1a8e4"),
        ([(PageType.VMSA, 0xFFFFFFFFF000, ZERO_PAGE)],
         "f4577da9b848673216afc3909e5ea7aa80150dda441526874cd2b0282894709b46484c13a07221aefbedfff667199259"),
        ([(PageType.NORMAL, 0, ZERO_PAGE), (PageType.ZERO, 0x1000, None)],
         "3bb77aec4f0d90c147b6b7884b6bd5741994d2575305f89639c95186690d949261186702ef51f2fa7c0dd4c90f03ebfd"),
        ([(PageType.NORMAL, 0, LGTM_FIRST), (PageType.NORMAL, 0x1000, ZERO_PAGE), (PageType.NORMAL, 0x2000, LGTM_LAST)],
         "cba1cd767c33b30f96271837dbbae4081a945464a5af397b9b0336b5d8759ee88cc6b62c05d915c4424a9ac5747437d4"),
        ([(PageType.ZERO, 0x9000 + 0x1000 * number, None) for number in range(3)],
         "4bfe18477ba370a50329da74b9621e721c4f29663176e08fbcf088a17c1bc45f133898b86d5082acbe202a6e9419808a"),
    ],
)  # fmt: skip
def test_the_chain_equals_published_answers(pages: list[tuple[PageType, int, bytes | None]], expected: str) -> None:
    digest = LaunchDigest()
    for page_type, gpa, contents in pages:
        digest.update(page_type, gpa, contents)
    assert digest.value.hex() == expected


def test_vmpl_permissions_stand_in_the_order_of_amd_s_own_tool() -> None:
    digest = LaunchDigest()
    digest.update(PageType.NORMAL, 0, ZERO_PAGE, vmpl_permissions=(1, 2, 3))
    assert digest.value.hex() == (
        "ff7ae65cab8c87efb3abba29188dc841b69748c6644e943b709c70ff2d969e0d1e513ce424abec80ded1de7f9e9deb2e"
    )


def test_the_legacy_digest_is_one_hash_over_all_bytes_in_order() -> None:
    digest = LegacyLaunchDigest()
    for part in (b"first", b"second"):
        digest.update(part)
    assert digest.value == hashlib.sha256(b"firstsecond").digest()


def test_the_measurement_equals_the_published_answer_of_virtee() -> None:
    answer = launch_measure(
        bytes.fromhex("66320db73158a35a255d051758e95ed4"),
        (0, 0x12, 0x0F),
        0,
        hashlib.sha256(b"").digest(),
        bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554"),
    )
    assert answer.hex() == "6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea"


def test_before_api_0_17_the_version_is_not_measured() -> None:
    arguments = (bytes(16), 0, bytes(32), bytes(16))
    old = [launch_measure(arguments[0], (0, 16, build), *arguments[1:]) for build in (1, 2)]
    new = [launch_measure(arguments[0], (0, 17, build), *arguments[1:]) for build in (1, 2)]
    assert old[0] == old[1]
    assert new[0] != new[1]


@pytest.mark.parametrize("page_type", [PageType.NORMAL, PageType.VMSA])
@pytest.mark.parametrize("contents", [None, b"", bytes(4095), bytes(4097)])
def test_a_measured_page_without_its_contents_is_misuse_and_leaves_the_digest(
    page_type: PageType, contents: bytes | None
) -> None:
    digest = LaunchDigest()
    with pytest.raises(ValueError, match="contents: expected 4096 bytes"):
        digest.update(page_type, 0, contents)
    assert digest.value == bytes(48)
