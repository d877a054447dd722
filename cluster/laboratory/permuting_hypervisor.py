"""A hypervisor that launches other firmware than was measured (row 19; Wilke et al. 2021, CVE-2021-26311).

LAUNCH_UPDATE_DATA takes pieces of 16 bytes at any address and hashes their bytes alone,
one after another: two blocks that lie in each other's place are measured in the order
of the image, and the digest is the image's. SNP hashes each page with its address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.laboratory.bad_hypervisor import BadHypervisor
from node.hypervisor_port import Answers, Batch, LaunchTask
from node.machine_spec import MachineSpec
from node.operations import HostWrite, PspCommand
from psp.command_buffers import LaunchUpdateData
from psp.commands import LegacyCommand

BLOCK_BYTES = 16


class PermutingHypervisor(BadHypervisor):
    """Permutes the firmware of every guest."""

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch as every hypervisor does, with other bytes in memory and the same under the hash."""
        image = self._images[spec.firmware].data
        task = super().launch(spec)
        answers: Answers | None = None
        while True:
            try:
                batch: Batch = task.send(answers)  # type: ignore[arg-type]  # None begins it
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            match batch:
                case (PspCommand(LegacyCommand.LAUNCH_UPDATE_DATA as command, spa, buffer),):
                    pieces = [PspCommand(command, spa, one) for one in _pieces(buffer, _other(image))]
                    answers = (yield tuple(pieces))[-1:]
                case _:
                    changed = [_permuted(one, image) if isinstance(one, HostWrite) else one for one in batch]
                    answers = yield tuple(changed)


def _permuted(one: HostWrite, image: bytes) -> HostWrite:
    if one.data != image:
        return one
    blocks = [image[at : at + BLOCK_BYTES] for at in range(0, len(image), BLOCK_BYTES)]
    other = _other(image)
    blocks[0], blocks[other] = blocks[other], blocks[0]
    return replace(one, data=b"".join(blocks))


def _other(image: bytes) -> int:
    """The first block that is not as the image's first, whose place it takes."""
    first = image[:BLOCK_BYTES]
    blocks = range(len(image) // BLOCK_BYTES)
    return next(one for one in blocks if image[one * BLOCK_BYTES : (one + 1) * BLOCK_BYTES] != first)


def _pieces(buffer: bytes, other: int) -> Sequence[bytes]:
    """The commands that measure memory in the image's own order."""
    whole = LaunchUpdateData.parse(buffer)
    end = whole.length // BLOCK_BYTES
    order = ((other, other + 1), (1, other), (0, 1), (other + 1, end))
    return [
        replace(whole, address=whole.address + start * BLOCK_BYTES, length=(stop - start) * BLOCK_BYTES).pack()
        for start, stop in order
        if start < stop
    ]
