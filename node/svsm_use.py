"""What a VM asked of its SVSM, for its host's books."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class SvsmUse:
    """``calls`` are exits to VMPL0; ``time_ns`` is vCPU time spent there, the SVSM's own start included."""

    calls: int = 0
    time_ns: int = 0
