"""Headers of packets, by hand from the base specification."""

from __future__ import annotations

import pytest

from tio.ide import CompletionStatus, SubStream, Tlp, TlpError, TlpKind, completion, memory_read, memory_write


def test_a_write_of_one_double_word_above_4_gib() -> None:
    """Fmt 011, type 00000, length 1; requester 01:00.0; first byte enables 1111; the address in two double words."""
    one = memory_write(0x0100, 0x1_0000_0004, b"abcd", tag=9)
    assert one.header == bytes.fromhex("60000001 0100090f 00000001 00000004")
    assert (one.kind, one.sub_stream, one.length_bytes) == (TlpKind.MEMORY_WRITE, SubStream.PR, 4)
    assert (one.requester, one.tag, one.address) == (0x0100, 9, 0x1_0000_0004)


def test_a_read_of_4_kib_says_zero_for_1024_double_words() -> None:
    one = memory_read(0x0208, 0xFFFF_F000, 4096, tag=0xFE)
    assert one.header == bytes.fromhex("20000000 0208feff 00000000 fffff000")
    assert (one.sub_stream, one.length_bytes, one.payload) == (SubStream.NPR, 4096, b"")


def test_a_completion_carries_status_byte_count_and_tag() -> None:
    one = completion(0x0300, 0x0100, 0x42, bytes(8))
    assert one.header == bytes.fromhex("4a000002 03000008 01004200")
    assert (one.requester, one.tag, one.sub_stream) == (0x0100, 0x42, SubStream.CPL)
    refused = completion(0x0300, 0x0100, 0x42, b"", CompletionStatus.UNSUPPORTED_REQUEST)
    assert refused.header == bytes.fromhex("0a000000 03002000 01004200")


@pytest.mark.parametrize(
    ("address", "length", "field"),
    [
        (0, 0, "length"),
        (0, 6, "length"),
        (2, 4, "address"),
        (4092, 8, "address"),
        (-4, 4, "address"),
        (1 << 64, 4, "address"),
    ],
)
def test_a_request_that_cannot_be_is_refused(address: int, length: int, field: str) -> None:
    with pytest.raises(TlpError) as error:
        memory_read(0x0100, address, length)
    assert error.value.field == field


@pytest.mark.parametrize("cut", [0, 4, 15])
def test_a_header_of_another_length_is_none(cut: int) -> None:
    whole = memory_write(1, 0, bytes(4))
    with pytest.raises((TlpError, IndexError)):
        Tlp(whole.header[:cut], whole.payload).checked()


def test_a_payload_of_another_length_than_the_header_says_is_none() -> None:
    whole = memory_write(1, 0, bytes(8))
    with pytest.raises(TlpError, match="payload: expected 8 bytes"):
        Tlp(whole.header, bytes(4)).checked()
