"""A fleet may come as CSV files of hosts and machines; what is wrong is named by file, line and column."""

from pathlib import Path

import pytest

from cluster.cli import main
from cluster.scenario import Scenario

HOSTS = "name,product,count,memory,mode\nrack,Milan,3,256 GiB,\nold,Naples,,128 GiB,sme\n"
VMS = (
    "name,count,generation,vcpus,memory,workload,start,svsm,parameters.batch\n"
    "db,4,SEV_SNP,2,4 GiB,key-value-store,,true,32\n"
    "web,,PLAIN,1,1 GiB,idle,running,,\n"
)


def made(folder: Path, hosts: str = HOSTS, vms: str = VMS) -> int:
    (folder / "hosts.csv").write_text(hosts)
    (folder / "vms.csv").write_text(vms)
    return main([
        "init", str(folder / "mine.toml"), "--hosts", str(folder / "hosts.csv"), "--vms", str(folder / "vms.csv"),
        "--duration", "10 min",
    ])  # fmt: skip


def test_both_files_become_a_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(tmp_path) == 0
    assert "4 hosts, 5 machines" in capsys.readouterr().out
    scenario = Scenario.load(tmp_path / "mine.toml")
    assert (scenario.name, scenario.duration) == ("mine", 600_000_000_000)
    assert [(one.name, one.product, one.count, one.mode) for one in scenario.hosts] == [
        ("rack", "Milan", 3, "none"), ("old", "Naples", 1, "sme"),
    ]  # fmt: skip
    database, web = scenario.vms
    assert (database.count, database.svsm, database.parameters) == (4, True, {"batch": 32})
    assert (web.count, web.start, web.memory) == (1, "running", 1 << 30)


@pytest.mark.parametrize(
    ("hosts", "vms", "complaint"),
    [
        (HOSTS.replace("Milan", "Zurich"), VMS, "hosts.csv: line 2: product: expected one of the products Naples"),
        (HOSTS.replace("128 GiB", "128 Gb"), VMS, "hosts.csv: line 3: memory: expected"),
        (HOSTS, VMS.replace("SEV_SNP", "SEV_XL"), "vms.csv: line 2: generation: expected one of the generations PLAIN"),
        (HOSTS, VMS.replace("idle", "sleep"), "vms.csv: line 3: workload: expected one of the workloads"),
        (HOSTS, VMS.replace("1 GiB", "1 TiB"), "vms.csv: line 3: memory"),
        (HOSTS, VMS.replace(",32", ",0"), "vms.csv: line 2: parameters.batch"),
        (HOSTS, VMS.replace("svsm,", "svm,"), "vms.csv: line 1: expected columns of name, count"),
        (HOSTS.replace("product,", "").replace("Milan,", "").replace("Naples,", ""), VMS, "expected a column product"),
        (HOSTS + "x\n", VMS, "hosts.csv: line 4: expected 5 columns, got 1"),
        (HOSTS.splitlines()[0] + "\n", VMS, "hosts.csv: expected at least one row, got none"),
        (HOSTS, VMS + 'a,"b', "vms.csv: line 4: expected CSV"),
        (HOSTS, VMS.replace("PLAIN,1", "PLAIN,-1"), "vms.csv: line 3: vcpus: expected"),
    ],
)
def test_a_bad_cell_is_one_line_with_its_place(
    hosts: str, vms: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(tmp_path, hosts, vms) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "mine.toml").exists()


def test_one_file_alone_is_no_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "x.toml", "--hosts", "hosts.csv"]) == 2
    assert "--vms: expected it with the other file" in capsys.readouterr().err
    assert main(["init", "x.toml", "--hosts", "/nowhere.csv", "--vms", "vms.csv"]) == 2
    assert "/nowhere.csv: expected a CSV file, got no such file" in capsys.readouterr().err
