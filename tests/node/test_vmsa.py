"""The VMSA page: its layout, the initial contents, and registers that survive in it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.vmsa import SevEsSaveArea

from node.program import Registers
from node.vcpu_model import vcpu_model
from node.vmsa import (
    BSP_RESET_EIP,
    VMSA_BYTES,
    VMSA_FIELDS,
    SevFeature,
    StoredArea,
    VmsaError,
    general_registers,
    initial_vmsa,
    load_registers,
    read_field,
    save_registers,
    write_field,
)

AP_EIP = 0x0080_B004
U64 = st.integers(0, (1 << 64) - 1)

# Known answers: QEMU, EPYC-v4, made with sev-snp-measure 0.0.13. Agreement with a tool, not with hardware.
KNOWN_DIGESTS = {
    (BSP_RESET_EIP, 0x01): "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b"
    "3856f55378e9518d0da99452d51c553a",
    (AP_EIP, 0x01): "8413b852790765a310d95867a8b00bfca3a802b5a80830044b45e253fe96222657e11e53fcf63eb0e0afd722385bf7b4",
    (BSP_RESET_EIP, 0x21): "ae79efa6efbe1594a2717dfd42af495a0e4ed37b00e529a5fdf349bea04c3513"
    "962ffb0c74cf65b0d9a1857271833d6e",
    (AP_EIP, 0x21): "180ef2675dc01615d31b3e84ef27a0a69d08bfbbb58ea4f6a0188f08884ab6407591ada42f99749ce9a406fb4e5d8355",
}

OTHER_NAMES = {
    "dbgctrl": "DBGCTL",
    "event_inj": "EVENTINJ",
    "guest_exit_info_1": "GUEST_EXITINFO1",
    "guest_exit_info_2": "GUEST_EXITINFO2",
    "guest_exit_int_info": "GUEST_EXITINTINFO",
    "guest_exit_code": "GUEST_EXITCODE",
    "last_excp_from": "LASTEXCP_FROM",
    "last_excp_to": "LASTEXCP_TO",
    "fpreg_x87": "X87_REGISTERS",
    "fpreg_xmm": "XMM",
    "fpreg_ymm": "YMM_HIGH",
    **{f"vmpl{level}_ssp": f"PL{level}_SSP" for level in range(4)},
    **{f"x87_{name}": name.upper() for name in ("ftw", "fsw", "fcw", "fop")},
}


@pytest.mark.parametrize(("eip", "features"), KNOWN_DIGESTS)
def test_initial_pages_have_the_known_digests(eip, features):
    page = initial_vmsa(eip, vcpu_model("EPYC-v4").cpuid_signature, features)
    assert hashlib.sha384(page).hexdigest() == KNOWN_DIGESTS[eip, features]


def test_fields_neither_overlap_nor_leave_the_architected_area():
    end = 0
    for field in VMSA_FIELDS.values():
        assert field.offset >= end, field
        end = field.offset + field.width
    assert end <= 0x800


def test_offsets_agree_with_another_implementations_structure():
    for name, _ in SevEsSaveArea._fields_:
        if name.startswith("reserved") or name == "manual_padding":
            continue
        other = getattr(SevEsSaveArea, name)
        parts = ["_SELECTOR", "_ATTRIBUTES", "_LIMIT", "_BASE"] if f"{name.upper()}_LIMIT" in VMSA_FIELDS else [""]
        fields = [VMSA_FIELDS[OTHER_NAMES.get(name, name.upper()) + part] for part in parts]
        assert fields[0].offset == other.offset, name
        assert sum(field.width for field in fields) == other.size, name


@given(values=st.lists(U64, min_size=17, max_size=17), background=st.binary(min_size=64, max_size=64))
def test_registers_come_back_from_the_page_and_nothing_else_changes(values, background):
    registers = Registers()
    for name, value in zip(Registers.__slots__, values, strict=True):
        setattr(registers, name, value)
    page = bytearray(background * 64)
    save_registers(registers, page)
    again = load_registers(page)
    for name in Registers.__slots__:
        assert getattr(again, name) == getattr(registers, name) == read_field(page, name.upper())
    expected = bytearray(background * 64)
    for name in Registers.__slots__:
        write_field(expected, name.upper(), getattr(registers, name))
    assert page == expected


def test_loading_fills_the_registers_it_is_given():
    registers = Registers(5)
    page = bytearray(VMSA_BYTES)
    write_field(page, "RIP", 9)
    assert load_registers(bytes(page), registers) is registers
    assert registers.rip == 9


def test_registers_that_are_stored_when_somebody_looks_are_those_that_an_exit_stores():
    registers = Registers()
    for number, name in enumerate(Registers.__slots__):
        setattr(registers, name, (number + 1) << 40)
    page = bytearray(range(256)) * (VMSA_BYTES // 256)
    area = StoredArea(bytes(page), general_registers(registers))
    loaded = load_registers(area)
    assert [getattr(loaded, name) for name in Registers.__slots__] == [
        getattr(registers, name) for name in Registers.__slots__
    ]
    save_registers(registers, page)
    assert len(area) == len(page)
    assert area.made() == bytes(area) == page


@pytest.mark.parametrize("value", [-1, 1 << 64, 1.5])
def test_a_register_that_is_no_64_bit_number_is_named_and_the_page_stays(value):
    registers = Registers()
    registers.rip = 7
    registers.r14 = value
    page = bytearray(VMSA_BYTES)
    with pytest.raises(VmsaError, match="R14"):
        save_registers(registers, page)
    assert page == bytes(VMSA_BYTES)


def test_a_page_of_another_size_is_refused():
    with pytest.raises(VmsaError, match="4096"):
        load_registers(bytes(100))
    with pytest.raises(VmsaError, match="4096"):
        save_registers(Registers(), bytearray(100))


def test_features_carry_the_bits_that_launches_measure():
    page = initial_vmsa(BSP_RESET_EIP, 0, SevFeature.SNP_ACTIVE | SevFeature.DEBUG_SWAP)
    assert read_field(page, "SEV_FEATURES") == 0x21
    assert (read_field(page, "CS_BASE"), read_field(page, "RIP")) == (0xFFFF_0000, 0xFFF0)
