"""Whatever bytes a host gives as a command's buffer, it gets a status, and a refusal changes nothing."""

from __future__ import annotations

from device_bench import CONTEXT, Bench, running
from hypothesis import given, settings
from hypothesis import strategies as st
from tio_orders import ORDERS

from psp.status import Status

COMMAND_PAGE = 0x1000
GOES_ON = {Status.SUCCESS, Status.SPDM_REQUEST, Status.EXPAND_BUFFER_LENGTH_REQUEST}
_BENCH: list[Bench] = []


def fresh() -> Bench:
    """A TDI that runs and nothing waits; a new one where an example has changed anything."""
    if not _BENCH:
        bench = running()
        bench.lay_buffers()
        _BENCH.append(bench)
    return _BENCH[0]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(sorted(ORDERS)),
    st.lists(st.tuples(st.integers(8, 79), st.binary(min_size=1, max_size=8)), max_size=3),
)
def test_changed_orders_get_a_status(name: str, changes: list[tuple[int, bytes]]) -> None:
    bench = fresh()
    command, order = ORDERS[name]
    data = bytearray(order(bench).pack())
    size = len(data)
    for where, octets in changes:
        at = where % size
        data[at : at + len(octets)] = octets
    bench.machine.bus.write(COMMAND_PAGE, bytes(data[:size]))
    before = bench.snapshot()
    status = Status(bench.machine.psp.submit(command, COMMAND_PAGE))
    if status in GOES_ON:
        _BENCH.clear()
    else:
        assert bench.snapshot() == before
    assert CONTEXT in bench.machine.psp.snp.tsm.contexts.devices or status is Status.SUCCESS
