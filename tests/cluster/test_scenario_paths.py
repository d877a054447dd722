"""Paths of a scenario that no system takes are findings like any other, not internal errors."""

from pathlib import Path

import pytest

from cluster.cli import main

SCENARIO = """
schema = 1
name = "paths"
duration = "1 s"
[[hosts]]
name = "host"
product = "Milan"
memory = "4 GiB"
[[vms]]
name = "vm"
generation = "PLAIN"
memory = "64 MiB"
workload = "stream"
"""


@pytest.mark.parametrize("key", ["disk", "firmware"])
def test_a_path_with_a_nul_or_that_leads_to_itself_is_one_line(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, expected in (("a\\u0000b", "expected a path, which holds no NUL"), ("loop", "got no file")):
        (tmp_path / "paths.toml").write_text(f'{SCENARIO}{key} = "{path}"\n')
        assert main(["check", str(tmp_path / "paths.toml")]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"sevfleet: {tmp_path}/paths.toml: vms[0].{key}")
        assert expected in line
        assert line.count("\n") == 1
