"""The lines of processors that AMD keeps root keys for, and what their identities look like, as a table.

Sources: AMD's published certificates of each line; public reports of their
hosts. Bergamo and Siena are signed for with Genoa's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from psp.tcb_version import TcbLayout

POINT_ID_BYTES = 64
SHORT_ID_BYTES = 8


class FmcPlace(Enum):
    """Where the FMC of Turin stands in the chain of hashes that a VCEK is derived with.

    That it is the first component is all that has been said; nobody has published a key of a Turin to check
    it with. The other place is the last.
    """

    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class ProductLine:
    """One line. ``root_bits`` is the size of its RSA keys; ``tcb`` is None where there is no SEV-SNP.

    The rest is of the certificates: product name and structure version in a VCEK's, the ARK's serial number.
    """

    name: str
    root_bits: int
    chip_id_bytes: int
    tcb: TcbLayout | None
    certificate_name: str = ""
    structure_version: int = 0
    first_serial: int = 0
    """The ASK's is one more; that Genoa's lies between its neighbours', and the ASVK's after the ASK's, is a guess."""
    fmc_place: FmcPlace = FmcPlace.FIRST


_ROWS = (
    ProductLine("Naples", 2048, POINT_ID_BYTES, None),
    ProductLine("Rome", 4096, POINT_ID_BYTES, None),
    ProductLine("Milan", 4096, POINT_ID_BYTES, TcbLayout.MILAN, "Milan-B0", 0, 0x10000),
    ProductLine("Genoa", 4096, POINT_ID_BYTES, TcbLayout.MILAN, "Genoa", 0, 0x20000),
    ProductLine("Turin", 4096, SHORT_ID_BYTES, TcbLayout.TURIN, "Turin", 1, 0x30000),
)

# Newer issues of VCEKs name the product without its stepping.
PRODUCT_LINES: Mapping[str, ProductLine] = {line.name: line for line in _ROWS}
