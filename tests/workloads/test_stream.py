"""The triad really is computed, over data that really lies in memory."""

import numpy as np

from workloads.stream import TRIAD_RIP

PARAMETERS = {"array_bytes": 32 << 10, "chunk_bytes": 8 << 10, "spot_lines": 4}


def arrays(stream) -> list[np.ndarray]:
    size = PARAMETERS["array_bytes"]
    base = stream.placement.base_gpa
    return [np.frombuffer(stream.memory.load(base + at * size, size, private=True), "<f8") for at in range(3)]


def test_each_sweep_adds_three_times_c(machine) -> None:
    stream = machine("stream", **PARAMETERS)
    stream.run(4)
    assert stream.registers.rip == TRIAD_RIP
    first, before, c = arrays(stream)
    assert np.array_equal(before, first - 3 * c)
    assert len(set(first.tolist())) > 3900
    for sweep in (1, 2, 3):
        stream.run(4 + 4 * sweep)
        assert np.array_equal(arrays(stream)[sweep % 2], first + 3 * sweep * c)
        assert np.array_equal(arrays(stream)[2], c)
