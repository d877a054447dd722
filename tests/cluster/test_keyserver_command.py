"""``sevfleet keyserver`` refuses what it cannot serve, in one line."""

import socket

import pytest

from cluster import attested_guest
from cluster.cli import main
from cluster.key_server.chip_register import SINGLE_HOSTS
from node import owner_platform


def test_the_hosts_of_other_commands_are_known():
    assert SINGLE_HOSTS == (attested_guest.HOST, owner_platform.HOST)


BAD = {
    "--issued": ("yesterday", "--issued: expected a date like 2026-01-31, got 'yesterday'"),
    "--rate": ("0", "--rate: expected a number from 0.001 to 1000000, got '0'"),
    "--burst": ("0", "burst"),
    "--slow": ("-1", "slow"),
    "--lie": ("sometimes", "--lie: expected"),
    "--provider": ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "--provider: expected 1 to 64 printable ASCII"),
    "--port": ("65536", "port"),
    "--laboratory": ("-1", "laboratory"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_settings_are_refused_in_one_line(capsys, option):
    value, expected = BAD[option]
    assert main(["keyserver", option, value]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_issued_takes_years_of_this_age_alone(capsys):
    assert main(["keyserver", "--issued", "1066-10-14"]) == 2
    assert "a year from 1980 to 2200, got 1066" in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_scenario_that_is_not_there_are_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["keyserver", "--port", str(port)]) == 1
    assert f"--port: expected a free port on 127.0.0.1, got {port}" in capsys.readouterr().err
    assert main(["keyserver", "nowhere.toml"]) == 2
    assert "nowhere.toml" in capsys.readouterr().err
