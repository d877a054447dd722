"""What each line of processors shows a guest, held against CPUID of real parts as public dumps have it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cpu_features import (
    FEATURES,
    CpuidSwitches,
    allowed_registers,
    feature_registers,
    features_of,
)
from node.product import PRODUCTS

UPWARDS = ("Naples", "Rome", "Milan", "Genoa", "Turin")

# EBX, ECX and EDX of function 7: a Ryzen 2000, a Ryzen 3600 and an Xbox Series X, an EPYC 7003, a Ryzen 7950X.
REAL_7 = {
    "Naples": (0x209C_01A9, 0, 0),
    "Rome": (0x219C_91A9, 0x0040_0004, 0),
    "Milan": (0x219C_97A9, 0x0040_069C, 0x10),
    "Genoa": (0xF1BF_97A9, 0x0040_5FCE, 0x1000_0010),
}
PQM_AND_PQE, CET_SS_AND_OSPKE, LA57, FLUSH_L1D = 1 << 12 | 1 << 15, 1 << 7 | 1 << 4, 1 << 16, 1 << 28
"""Not a guest's: resource control, and flushing. CET_SS is behind a switch, OSPKE the guest's own doing."""


@pytest.mark.parametrize("product", REAL_7)
def test_function_7_is_that_of_real_parts_but_for_what_no_guest_is_shown(product):
    _, ebx, ecx, edx = feature_registers(features_of(product))[7, 0]
    real_ebx, real_ecx, real_edx = REAL_7[product]
    assert ebx == real_ebx & ~PQM_AND_PQE
    # Parts for desktops lack the fifth level of page tables that EPYC's have.
    assert ecx == real_ecx & ~CET_SS_AND_OSPKE | (LA57 if product == "Genoa" else 0)
    assert edx == real_edx & ~FLUSH_L1D


# ECX and EDX of function 1 and of 80000001 of the same Ryzens, and XCR0 as a Ryzen 7950X and a 3600 report it.
@pytest.mark.parametrize("product", ["Naples", "Rome"])
def test_no_feature_is_shown_that_real_parts_lack(product):
    shown = feature_registers(features_of(product))
    assert not shown[1, 0][2] & ~0x7ED8_320B
    assert not shown[1, 0][3] & ~0x178B_FBFF
    assert not shown[0x8000_0001, 0][2] & ~0x35C2_33FF
    assert not shown[0x8000_0001, 0][3] & ~0x2FD3_FBFF
    assert shown[0xD, 0][0] == 0x7


def test_state_of_avx_512_comes_with_genoa_and_that_of_protection_keys_with_milan():
    masks = [feature_registers(features_of(product))[0xD, 0][0] for product in UPWARDS]
    assert masks == [0x7, 0x7, 0x207, 0x2E7, 0x2E7]


# What each model has beyond the one before (libvirt's src/cpu_map/x86_EPYC*.xml, made from QEMU's), but for SVM's
# features; names as there. XSAVES is in EPYC's too, and taken out of EPYC-Rome's for the erratum that both have.
ADDED = {
    "Rome": "amd-ssbd amd-stibp clwb ibrs rdpid umip wbnoinvd",
    "Milan": """amd-psfd erms fsrm invpcid lfence-always-serializing no-nested-data-bp null-sel-clr-base pcid pku
        stibp-always-on vaes vpclmulqdq xsaves""",
    "Genoa": """auto-ibrs avx512-bf16 avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512f avx512ifma
        avx512vbmi avx512vbmi2 avx512vl avx512vnni fs-gs-base-ns gfni la57 perfmon-v2""",
    "Turin": """avx-vnni avx512-vp2intersect ibpb-brtype movdir64b movdiri prefetchi sbpb srso-user-kernel-no""",
}


@pytest.mark.parametrize(("before", "product"), list(pairwise(UPWARDS)))
def test_a_line_adds_what_its_qemu_model_adds(before, product):
    added = {name for name in features_of(product) - features_of(before) if not name.startswith("xcr0-")}
    assert added == set(ADDED[product].split())


def test_every_line_has_what_those_before_it_have_and_more():
    sets = [features_of(product) for product in UPWARDS]
    assert all(older < newer for older, newer in pairwise(sets))
    assert features_of("Bergamo") == features_of("Siena") == features_of("Genoa")
    assert {product: features_of(product) for product in PRODUCTS}  # None is missing.
    with pytest.raises(KeyError):
        features_of("Athens")


def test_switches_show_what_depends_on_a_host_s_software():
    older_kernel = CpuidSwitches(xsaves_before_milan=True)
    assert features_of("Rome", older_kernel) - features_of("Rome") == {"xsaves"}
    assert features_of("Genoa", older_kernel) == features_of("Genoa")
    newer_kernel = CpuidSwitches(shadow_stacks=True)
    assert features_of("Milan", newer_kernel) - features_of("Milan") == {"shstk"}
    assert features_of("Rome", newer_kernel) == features_of("Rome")


def test_no_two_features_are_one_bit():
    places = [(one.leaf, one.register, one.bit) for one in FEATURES.values()]
    assert len(set(places)) == len(places)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(FEATURES))), st.sets(st.sampled_from(sorted(FEATURES))))
def test_what_is_allowed_lets_all_by_that_a_processor_has_and_nothing_of_the_rest(has, asked):
    allowed, shown = allowed_registers(frozenset(has)), feature_registers(frozenset(asked))
    cut = {leaf: tuple(map(int.__and__, values, allowed[leaf])) for leaf, values in shown.items()}
    both = feature_registers(frozenset(has & asked))
    assert {leaf: values for leaf, values in cut.items() if any(values)} == both
