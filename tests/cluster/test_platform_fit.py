"""What a guest that firmware carries must find again at a target, and what is said where it would not."""

import pytest

from cluster.platform_fit import misfit
from node.migration_refusal import MigrationRefusal

HERE = ("Milan", 51, 5, (1, 55, 29))


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        (HERE, None),
        (("Milan", 51, 5, (1, 55, 30)), None),
        (("Milan", 51, 5, (2, 0, 0)), None),
        (("Genoa", 51, 5, (1, 55, 29)), MigrationRefusal.OTHER_PRODUCT_LINE),
        (("Milan", 47, 5, (1, 55, 29)), MigrationRefusal.OTHER_C_BIT),
        (("Milan", 51, 1, (1, 55, 29)), MigrationRefusal.OTHER_C_BIT),
        (("Milan", 51, 5, (1, 55, 28)), MigrationRefusal.LOWER_FIRMWARE),
        (("Milan", 51, 5, (1, 54, 99)), MigrationRefusal.LOWER_FIRMWARE),
        (("Milan", 51, 5, (0, 99, 99)), MigrationRefusal.LOWER_FIRMWARE),
    ],
)
def test_a_target_has_the_source_s_line_c_bit_and_address_bits_and_no_older_firmware(target, refusal):
    assert misfit(HERE, target) is refusal
