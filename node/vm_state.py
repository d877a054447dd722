"""What a VM is made of while it is on no host: registers, memory and disk, as bytes."""

from __future__ import annotations

from dataclasses import dataclass

Run = tuple[int, bytes]
"""Where a run of whole pages or blocks begins, and its bytes."""


@dataclass(frozen=True, slots=True)
class VmState:
    """A stopped VM.

    ``save_areas`` holds each vCPU's registers; ``started`` whether it had come
    out of reset. ``pages`` are runs by GPA, ``blocks`` runs by logical block;
    what is in neither is zero. ``launched`` and ``reset_rips`` are what its
    start-up code was told.
    """

    vm: str
    save_areas: tuple[bytes, ...]
    started: tuple[bool, ...]
    launched: tuple[int, ...]
    reset_rips: tuple[int, ...]
    pages: tuple[Run, ...]
    blocks: tuple[Run, ...]
