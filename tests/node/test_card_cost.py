"""Time of cards' transfers, against the sheet's arithmetic of links and IDE."""

import pytest

from node.card_cost import CardCost, CardTraffic
from node.cost_table import load_cost_table

COSTS = dict(load_cost_table())
GEN5_X16 = 63.02e9


@pytest.mark.parametrize(
    # spec/tio/ide.md, section 5: GB/s over Gen5 x16 plain, with IDE, and with IDE in aggregates of eight.
    ("payload", "plain", "ide", "aggregated"),
    [
        (64, 45.8, 38.8, 43.1), (128, 53.1, 48.0, 51.2), (256, 57.6, 54.5, 56.5), (512, 60.2, 58.4, 59.6),
        (4096, 62.6, 62.4, 62.6),
    ],
)  # fmt: skip
def test_rates_are_those_of_the_framing(payload, plain, ide, aggregated):
    for packets, expected in ((1, ide), (8, aggregated)):
        cost = CardCost(COSTS | {"pcie.payload_bytes": payload, "ide.packets_per_mac": packets})
        clear_ns, none = cost.transfer_ns(CardTraffic(clear_bytes=1 << 30))
        assert none == 0
        assert (1 << 30) / clear_ns == pytest.approx(plain, rel=0.002)
        link_ns, ide_ns = cost.transfer_ns(CardTraffic(trusted_bytes=1 << 30))
        assert link_ns == clear_ns
        assert (1 << 30) / (link_ns + ide_ns) == pytest.approx(expected, rel=0.002)


def test_the_link_is_the_sheets():
    assert COSTS["pcie.link_bytes_per_s"] == pytest.approx(GEN5_X16, rel=1e-3)
