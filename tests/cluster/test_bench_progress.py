"""A long benchmark says how far it is, where nobody watches a bar as well."""

import time

import pytest

from cluster.bench.progress import EVERY_S, bench_line


def test_a_long_benchmark_writes_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with bench_line("bench recovery", "workers killed") as tell:
        for done in range(200):
            now_s += EVERY_S / 4
            tell(done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["bench recovery: 3 of 200 workers killed", "bench recovery: 7 of 200 workers killed"]
    assert len(lines) == 50
