"""What the header of a guest message may say, asked of the header itself: no seal stands before these rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from psp.guest_message import AES_256_GCM, BadMessage, MessageHeader, MessageType

GOOD = MessageHeader(sequence=1, message_type=MessageType.REPORT_REQ, message_version=1, payload_bytes=96, vmpck=0)


def test_a_header_in_order_is_taken() -> None:
    assert MessageHeader.checked(GOOD.pack()) == GOOD
    assert MessageHeader.checked(replace(GOOD, payload_bytes=4000, vmpck=3).pack())


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm": 0},
        {"algorithm": AES_256_GCM + 1},
        {"header_version": 0},
        {"header_version": 2},
        {"header_bytes": 0x5F},
        {"header_bytes": 0x61},
        {"header_bytes": 0},
        {"payload_bytes": 4001},
        {"vmpck": 4},
        {"reserved": 1},
        {"more_reserved": 1 << 31},
        {"rest": bytes(0x22) + b"\1"},
        {"tag": bytes(16) + b"\1" + bytes(15)},
    ],
    ids=str,
)
def test_a_header_that_no_sender_could_mean_is_refused(wrong: dict[str, Any]) -> None:
    """SEV-SNP firmware ABI, table of the message header: sizes, version, algorithm and what must be zero."""
    with pytest.raises(BadMessage):
        MessageHeader.checked(replace(GOOD, **wrong).pack())


def test_messages_have_the_sheet_s_numbers() -> None:
    names = (
        "CPUID", "KEY", "REPORT", "EXPORT", "IMPORT", "ABSORB", "VMRK", "ABSORB_NOMA", "TSC_INFO",
        "TIO_TDI_INFO", "TIO_MMIO_VALIDATE", "TIO_MMIO_CONFIG", "TIO_SDTE_WRITE",
    )  # fmt: skip
    ways = ("REQ", "RSP")
    expected = {f"{name}_{way}": 2 * at + reply for at, name in enumerate(names) for reply, way in enumerate(ways, 1)}
    assert {kind.name: kind.value for kind in MessageType} == expected
