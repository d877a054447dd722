"""What protection costs on the wire: the arithmetic of the published formats, worked by hand."""

from __future__ import annotations

import pytest
from ide_ends import ends

from tio.ide import WireFormat, memory_write

GEN5_X16_GB_PER_S = 63.02
TABLE = [
    # payload, plain, protected, with eight under a MAC (percent of the wire); Gen5 x16 GB/s
    (64, 72.7, 61.5, 68.4, (45.8, 38.8, 43.1)),
    (128, 84.2, 76.2, 81.3, (53.1, 48.0, 51.2)),
    (256, 91.4, 86.5, 89.7, (57.6, 54.5, 56.5)),
    (512, 95.5, 92.8, 94.6, (60.2, 58.4, 59.6)),
    (4096, 99.4, 99.0, 99.3, (62.6, 62.4, 62.6)),
]


@pytest.mark.parametrize(("payload", "plain", "alone", "eight", "rates"), TABLE)
def test_efficiency_by_payload(
    payload: int, plain: float, alone: float, eight: float, rates: tuple[float, ...]
) -> None:
    formats = [
        WireFormat(payload, protected=False),
        WireFormat(payload),
        WireFormat(payload, aggregation=8),
    ]
    shares = [one.efficiency(8 * payload) for one in formats]
    assert [round(100 * share, 1) for share in shares] == [plain, alone, eight]
    assert [round(GEN5_X16_GB_PER_S * share, 1) for share in shares] == pytest.approx(rates, abs=0.11)


def test_completions_have_a_shorter_header() -> None:
    plain = WireFormat(256, header_bytes=12, protected=False).efficiency(256)
    protected = WireFormat(256, header_bytes=12).efficiency(256)
    assert [round(100 * share, 1) for share in (plain, protected)] == [92.8, 87.7]


@pytest.mark.parametrize("aggregation", [1, 3, 8])
@pytest.mark.parametrize("packets", [1, 7, 16])
def test_accounted_bytes_are_those_of_real_packets(aggregation: int, packets: int) -> None:
    one, _ = ends(aggregation)
    wire = one.send([memory_write(1, 256 * n, bytes(256)) for n in range(packets)])
    real = sum(8 + len(part.prefix) + len(part.header) + len(part.payload) + len(part.mac) for part in wire)
    assert WireFormat(256, aggregation=aggregation).bytes_on_wire(256 * packets) == real
