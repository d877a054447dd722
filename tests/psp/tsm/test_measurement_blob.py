"""The blob of TIO_DEV_MEASUREMENTS is taken apart by its reader, and nothing else passes for one."""

from __future__ import annotations

import pytest
from device_bench import connected
from hypothesis import given, settings
from hypothesis import strategies as st

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.tsm.measurement_blob import parse_measurement_blob
from tio.device_identity import measured
from tio.spdm import ResponderSettings
from tio.spdm.codes import Version
from tio.spdm.faults import MalformedMessage

NONCE = bytes(range(32))


def blob(version: Version, flags: int = 0) -> tuple[bytes, tuple[object, ...]]:
    bench = connected(settings=ResponderSettings(versions=(version,)))
    bench.lay_buffers()
    order = bench.order(tsm.DeviceMeasurements, nonce=NONCE, flags=flags)
    assert bench.run(SnpCommand.TIO_DEV_MEASUREMENTS, order) == Status.SUCCESS
    return bench.result()[1], measured(bench.card.kind, bench.card.firmware)


@pytest.mark.parametrize("flags", [0, tsm.RAW_BIT_STREAM])
@pytest.mark.parametrize("version", [Version.V1_2, Version.V1_3])
def test_it_holds_the_nonce_and_every_measurement(version: Version, flags: int) -> None:
    data, expected = blob(version, flags)
    found = parse_measurement_blob(data)
    assert (found.nonce, found.slot, found.raw) == (NONCE, 0, bool(flags))
    assert [one.index for one in found.blocks] == [one.index for one in expected]  # type: ignore[attr-defined]
    if flags:
        assert [one.value for one in found.blocks] == [one.raw for one in expected]  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.binary(max_size=64), st.tuples(st.integers(0, 300), st.integers(1, 255), st.integers(0, 2000))))
def test_anything_else_is_refused_with_one_exception(change: bytes | tuple[int, int, int]) -> None:
    data = _BLOB if not isinstance(change, bytes) else change
    if not isinstance(change, bytes):
        where, flip, cut = change
        changed = bytearray(data)
        changed[where % len(changed)] ^= flip
        data = bytes(changed[:cut])
    try:
        found = parse_measurement_blob(data)
    except MalformedMessage:
        return
    assert found.blocks is not None


_BLOB = blob(Version.V1_3)[0]
