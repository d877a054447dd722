"""What cells remember of how they were written."""

from __future__ import annotations

from node.dimm_cells import DimmCells
from psp.system_bus import PAGE_BYTES


def test_an_image_is_known_again_wherever_nobody_keeps_its_pages_in_another_form() -> None:
    cells, image = DimmCells(64 * PAGE_BYTES), bytes(range(256)) * (4 * PAGE_BYTES // 256)
    cells.keep(8 * PAGE_BYTES, PAGE_BYTES, lambda *_: None)
    for at in (4, 16):
        cells.lay(at * PAGE_BYTES, image)
        assert cells.source((at + 1) * PAGE_BYTES, 2 * PAGE_BYTES) == (image, PAGE_BYTES)
    cells.keep(18 * PAGE_BYTES, PAGE_BYTES, lambda *_: None)
    assert cells.source(16 * PAGE_BYTES, 2 * PAGE_BYTES) == (image, 0)
    assert cells.source(16 * PAGE_BYTES, 3 * PAGE_BYTES) is None
    cells.let_go(18 * PAGE_BYTES)
    assert cells.source(16 * PAGE_BYTES, 3 * PAGE_BYTES) == (image, 0)
    cells.write(17 * PAGE_BYTES, b"x")
    assert cells.source(16 * PAGE_BYTES, 3 * PAGE_BYTES) is None
