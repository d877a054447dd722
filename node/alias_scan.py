"""Boot firmware's look for SPAs that share their cells (the answer to BadRAM, AMD-SB-3015, CVE-2024-21944)."""

from __future__ import annotations

from node.dram import Dram

STEP_BYTES = 2 << 20
"""How far marks are apart. AMD does not say how its firmware looks; aliases smaller than this stay unseen here."""
_MARK_BYTES = 8


def aliases_found(dram: Dram) -> bool:
    """Write a mark of its own to each step of memory, all of them, then look whether any was overwritten.

    Memory must hold nothing yet: it is empty again afterwards. An alias that
    appears later, as an interposer makes one, is not seen.
    """
    steps = range(0, dram.size_bytes, STEP_BYTES)
    for spa in steps:
        dram.write(spa, spa.to_bytes(_MARK_BYTES, "little"))
    found = any(dram.read(spa, _MARK_BYTES) != spa.to_bytes(_MARK_BYTES, "little") for spa in steps)
    dram.release(0, dram.size_bytes)
    return found
