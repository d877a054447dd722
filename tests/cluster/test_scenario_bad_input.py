"""Every kind of bad input ends in one line that names file, field and expectation; nothing is written."""

from pathlib import Path

import pytest

from cluster.cli import main

HEAD = """\
schema = 1
name = "bad"
duration = "1 h"
"""
HOST = """\
[[hosts]]
name = "milan"
product = "Milan"
memory = "64 GiB"
"""
VM = """\
[[vms]]
name = "db"
generation = "SEV_SNP"
memory = "1 GiB"
workload = "key-value-store"
"""
GOOD = HEAD + HOST + VM

BAD = {
    "empty": ("", "schema", "expected a value, got nothing"),
    "another schema version": (GOOD.replace("schema = 1", "schema = 2"), "schema", "expected schema version 1"),
    "schema version as text": (GOOD.replace("schema = 1", 'schema = "1"'), "schema", "expected schema version 1"),
    "unknown key": (GOOD + "colour = 3\n", 'vms[0].colour of "db"', "expected one of the keys name,"),
    "unknown check of a kernel": (
        GOOD + "kernel = {stars = false}\n", 'vms[0].kernel.stars of "db"', "expected one of the keys lazy_va"
    ),
    "a check neither on nor off": (
        GOOD + "kernel = {checks_carry = 1}\n", 'vms[0].kernel.checks_carry of "db"', "expected true or false, got 1"
    ),
    "a version of the GHCB protocol that nobody speaks": (
        GOOD + "kernel = {ghcb_version = 3}\n", 'vms[0].kernel.ghcb_version of "db"', "expected at most 2, got 3"
    ),
    "a version of the GHCB protocol that is no number": (
        GOOD + "kernel = {ghcb_version = true}\n", 'vms[0].kernel.ghcb_version of "db"', "expected a whole number, got"
    ),
    "misspelt key": (GOOD.replace("memory", "memry", 1), 'hosts[0].memry of "milan"', 'expected "memory"'),
    "unknown table": (GOOD + "[network]\nx = 1\n", "network", "expected one of the keys"),
    "wrong type": (GOOD + 'count = "3"\n', 'vms[0].count of "db"', 'expected a whole number, got "3"'),
    "boolean for a number": (GOOD + "count = true\n", 'vms[0].count of "db"', "expected a whole number, got True"),
    "fraction for a number": (GOOD + "vcpus = 1.5\n", 'vms[0].vcpus of "db"', "expected a whole number, got 1.5"),
    "table for a text": (GOOD + "firmware = {a = 1}\n", 'vms[0].firmware of "db"', "expected a text"),
    "not a list": (HEAD + "hosts = 3\n" + VM, "hosts", "expected a list of tables, got 3"),
    "size without a unit": (GOOD.replace('"1 GiB"', "1024"), 'vms[0].memory of "db"', 'expected a size such as "4'),
    "size in seconds": (GOOD.replace("1 GiB", "1 s"), 'vms[0].memory of "db"', 'expected a size such as "4 GiB"'),
    "negative time": (GOOD + 'arrival = "-1 s"\n', 'vms[0].arrival of "db"', 'expected a time such as "30 s"'),
    "negative duration": (GOOD.replace('"1 h"', '"-1 h"'), "duration", 'expected a time such as "30 s"'),
    "no time": (GOOD.replace('"1 h"', '"0 s"'), "duration", "expected more than no time"),
    "no latency": (GOOD.replace("[[h", 'control_plane_latency = "0 s"\n[[h', 1), "control_plane_latency", "more than"),
    "no room for vCPUs": (
        GOOD.replace("[[h", "vcpu_overcommit = 0\n[[h", 1),
        "vcpu_overcommit",
        "expected more than 0",
    ),
    "no lifetime": (GOOD + 'lifetime = "0 s"\n', 'vms[0].lifetime of "db"', "expected more than no time"),
    "arrival after the end": (GOOD + 'arrival = "2 h"\n', 'vms[0].arrival of "db"', "before the end at 1 h, got 2 h"),
    "zero machines": (HEAD + HOST, "vms", "expected at least one virtual machine"),
    "zero copies": (GOOD + "count = 0\n", 'vms[0].count of "db"', "expected at least 1, got 0"),
    "no hosts": (HEAD + "hosts = []\n" + VM, "hosts", "expected at least one entry"),
    "an SVSM without VMPLs": (
        GOOD.replace("SEV_SNP", "SEV_ES") + "svsm = true\n",
        'vms[0].svsm of "db"',
        "expected false: only SEV_SNP and SEV_TIO have VMPLs, got true with SEV_ES",
    ),
    "lazy validation without an RMP": (
        GOOD.replace("SEV_SNP", "SEV_ES") + "kernel = {lazy_validation = true}\n",
        'vms[0].kernel.lazy_validation of "db"',
        "expected false: only SEV_SNP and SEV_TIO without an SVSM have it, got true",
    ),
    "lazy validation above an SVSM": (
        GOOD + "svsm = true\nkernel = {lazy_validation = true}\n",
        'vms[0].kernel.lazy_validation of "db"',
        "expected false: only SEV_SNP and SEV_TIO without an SVSM have it, got true",
    ),
    "no books of validation above an SVSM": (
        GOOD + "svsm = true\nkernel = {tracks_validation = false}\n",
        'vms[0].kernel.tracks_validation of "db"',
        "expected true: a kernel above an SVSM accepts no page itself, got false",
    ),
    "an SVSM as text": (GOOD + 'svsm = "yes"\n', 'vms[0].svsm of "db"', 'expected true or false, got "yes"'),
    "an SVSM with too many vCPUs": (
        GOOD.replace("1 GiB", "2 GiB") + "svsm = true\nvcpus = 129\n",
        'vms[0].vcpus of "db"',
        "expected at most 128 with an SVSM, got 129",
    ),
    "negative seed": (GOOD.replace("[[h", "seed = -1\n[[h", 1), "seed", "expected at least 0, got -1"),
    "bad name": (GOOD.replace('"db"', '"d b"'), "vms[0].name", "expected a name of 1 to 63 letters"),
    "a name twice": (GOOD + VM, "vms.name", 'expected a name of its own for each, got "db" twice'),
    "a host's name": (
        GOOD.replace('"db"', '"milan"'),
        "vms.name",
        'expected a name that no host has, got "milan"',
    ),
    "a host of the control plane's name": (
        GOOD.replace('"milan"', '"control"'),
        "hosts.name",
        'expected a name that the control plane does not have, got "control"',
    ),
    "one of many of the control plane's name": (
        GOOD.replace('"milan"', '"control-1"') + HOST.replace('"milan"', '"control"'),
        "hosts.name",
        'expected a name that the control plane does not have, got "control"',
    ),
    "unknown product": (
        GOOD.replace("Milan", "Zen9"),
        'hosts[0].product of "milan"',
        "expected one of the products Na",
    ),
    "unknown workload": (GOOD.replace("key-value-store", "doom"), 'vms[0].workload of "db"', "expected one of the wor"),
    "unknown generation": (GOOD.replace("SEV_SNP", "SGX"), 'vms[0].generation of "db"', "expected one of the gener"),
    "a later generation": (
        GOOD.replace("SEV_SNP", "SEV_TIO"),
        'vms[0].generation of "db"',
        "expected one that any host (Milan) has, got SEV_TIO",
    ),
    "an unknown card": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "fpga"}]'),
        "hosts[0].cards[0].kind",
        "expected one of the cards gpu, nic, nvme",
    ),
    "a card of an odd size": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "gpu", memory = "3 MiB"}]'),
        'hosts[0].cards[0].memory of "milan"',
        "expected a power of two from 1 MiB to 1 GiB, got 3 MiB",
    ),
    "a card without a disk on a file": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "gpu", disk = "block.img"}]'),
        'hosts[0].cards[0].disk of "milan"',
        """expected "memory": only nvme cards have a disk""",
    ),
    "a card's disk that is not there": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "nvme", disk = "x.img"}]'),
        'hosts[0].cards[0].disk of "milan"',
        """expected "memory" or a file, got no file""",
    ),
    "more cards than slots": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "gpu", count = 32}]'),
        'hosts[0].cards of "milan"',
        "expected at most 31 in all, got 32",
    ),
    "devices for a program that drives none": (
        GOOD + 'devices = ["gpu"]\n',
        'vms[0].devices of "db"',
        "expected none: only device-work drives any, got some with key-value-store",
    ),
    "devices that no host has": (
        GOOD.replace('"64 GiB"', '"64 GiB"\ncards = [{kind = "gpu"}]').replace("key-value-store", "device-work")
        + 'devices = ["gpu", "gpu", "nic"]\n',
        'vms[0].devices of "db"',
        "expected cards that one host has, got 2 gpu and 1 nic",
    ),
    "SME on hosts without": (
        GOOD.replace("SEV_SNP", "SME"),
        'vms[0].generation of "db"',
        'expected one that any host (Milan, mode = "sme") has, got SME',
    ),
    "SME under TSME, pinned": (
        HEAD + HOST + 'mode = "tsme"\n' + VM.replace("SEV_SNP", "SME") + 'host = "milan"\n',
        'vms[0].generation of "db"',
        'expected one that host milan (Milan, mode = "sme") has, got SME',
    ),
    "SME in a trace on hosts without": (
        GOOD + "[trace]\nvms = 1\ngenerations = {SME = 1}\n",
        "trace.generations.SME",
        "expected a generation that some host has",
    ),
    "unknown mode": (
        HEAD + HOST + 'mode = "SME"\n' + VM,
        'hosts[0].mode of "milan"',
        "expected 'none', 'sme' or 'tsme'",
    ),
    "a later generation in a trace": (
        GOOD + "[trace]\nvms = 1\ngenerations = {SEV_TIO = 1}\n",
        "trace.generations.SEV_TIO",
        "expected a generation that some host has, got none has it",
    ),
    "SNP on a product without": (
        GOOD.replace('"Milan"', '"Naples"'),
        'vms[0].generation of "db"',
        "expected one that any host (Naples) has, got SEV_SNP",
    ),
    "unknown parameter": (GOOD + "parameters = {speed = 9}\n", 'vms[0].parameters.speed of "db"', "expected one of"),
    "parameter of no type": (GOOD + "parameters = {x = []}\n", 'vms[0].parameters.x of "db"', "a number or a text"),
    "host of too much memory": (GOOD.replace("64 GiB", "64 TiB"), 'hosts[0].memory of "milan"', "what Milan takes"),
    "host of odd memory": (GOOD.replace("64 GiB", "3 MiB"), 'hosts[0].memory of "milan"', "a multiple of 2 MiB"),
    "guest of no memory": (GOOD.replace('"1 GiB"', '"0 B"'), 'vms[0].memory of "db"', "expected"),
    "guest of little memory": (GOOD.replace('"1 GiB"', '"2 MiB"'), 'vms[0].memory of "db"', "expected"),
    "guest of odd memory": (GOOD.replace("1 GiB", "1025 KiB"), 'vms[0].memory of "db"', "expected"),
    "guest larger than a host": (GOOD.replace('"1 GiB"', '"1 TiB"'), 'vms[0].memory of "db"', "at most 64 GiB"),
    "too many vCPUs": (GOOD + "vcpus = 1000\n", 'vms[0].vcpus of "db"', "the threads of the largest host"),
    "too small for its vCPUs": (
        GOOD.replace("1 GiB", "256 MiB") + "vcpus = 128\n",
        'vms[0].memory of "db"',
        "expected",
    ),
    "more ASIDs than the product has": (
        (HEAD + HOST + "min_sev_asid = 5000\n" + VM),
        'hosts[0].min_sev_asid of "milan"',
        "Milan has 509 ASIDs",
    ),
    "more pinned machines than ASIDs": (
        HEAD + HOST + "min_sev_asid = 3\n" + VM + 'host = "milan"\ncount = 3\n',
        "vms.host",
        'expected at most 2 SEV_SNP machines at once on "milan"',
    ),
    "hiding on a product that cannot": (
        HEAD + HOST + "ciphertext_hiding = 40\n" + VM,
        'hosts[0].ciphertext_hiding of "milan"',
        "expected a product that can hide ciphertext (Turin), got Milan",
    ),
    "hiding with no ASID": (
        HEAD + HOST.replace('"Milan"', '"Turin"') + "ciphertext_hiding = 0\n" + VM,
        'hosts[0].ciphertext_hiding of "milan"',
        "at least 1",
    ),
    "hiding with ASIDs of SEV guests": (
        HEAD + HOST.replace('"Milan"', '"Turin"') + "min_sev_asid = 9\nciphertext_hiding = 9\n" + VM,
        'hosts[0].ciphertext_hiding of "milan"',
        "expected less than 9, the first ASID for SEV guests, got 9",
    ),
    "more pinned machines than ASIDs with hiding": (
        HEAD + HOST.replace('"Milan"', '"Turin"') + "ciphertext_hiding = 2\n" + VM + 'host = "milan"\ncount = 3\n',
        "vms.host",
        'expected at most 2 SEV_SNP machines at once on "milan"',
    ),
    "pinned to no host": (GOOD + 'host = "rome"\n', 'vms[0].host of "db"', 'a host (milan), got "rome"'),
    "running but late": (GOOD + 'start = "running"\narrival = "1 s"\n', 'vms[0].start of "db"', "that arrive later"),
    "unknown start": (GOOD + 'start = "now"\n', 'vms[0].start of "db"', "expected 'launch' or 'running', got \"now\""),
    **{
        f"migration_agent_floor: {floor}": (
            HEAD + HOST + f'{agent}migration_agent_floor = "{floor}"\n' + VM,
            'hosts[0].migration_agent_floor of "milan"', expected,
        )
        for floor, agent, expected in (
            ("snp=256", "migration_agent = true\n", "expected levels like"),
            ("snp=1,snp=2", "migration_agent = true\n", "expected levels like"),
            ("skill=1", "migration_agent = true\n", "expected levels like"),
            ("snp", "migration_agent = true\n", "expected levels like"),
            ("", "migration_agent = true\n", "expected levels like"),
            ("fmc=1", "migration_agent = true\n", "expected levels of bootloader, tee, snp, microcode, which Mi"),
            ("snp=24", "", "expected none without migration_agent"),
        )
    },
    "no such firmware": (GOOD + 'firmware = "x.fd"\n', 'vms[0].firmware of "db"', 'expected "auto" or an image file'),
    "no such disk": (GOOD + 'disk = "x.img"\n', 'vms[0].disk of "db"', """expected "memory" or a file, got no file"""),
    "part of a block for a disk": (GOOD + 'disk = "bad.toml"\n', 'vms[0].disk of "db"', "whole blocks of 4096 bytes"),
    "rubbish for firmware": (GOOD + 'firmware = "bad.toml"\n', 'vms[0].firmware of "db"', "expected an OVMF image"),
    "no such trace": (
        GOOD + '[trace]\nsource = "nowhere"\nvms = 3\ngenerations = {PLAIN = 1}\n',
        "trace.source",
        'expected "generated" or a folder with tasks and fragments',
    ),
    "a trace of zero machines": (GOOD + "[trace]\nvms = 0\ngenerations = {PLAIN = 1}\n", "trace.vms", "at least 1"),
    "a trace without a mix": (GOOD + "[trace]\nvms = 1\ngenerations = {}\n", "trace.generations", "at least one"),
    "a mix of nothing": (GOOD + "[trace]\nvms = 1\ngenerations = {PLAIN=0}\n", "trace.generations", "weight above 0"),
    "a mix of unknowns": (GOOD + "[trace]\nvms = 1\ngenerations = {SGX=1}\n", "trace.generations.SGX", "expected one"),
    "time that stands still": (
        GOOD + "[trace]\nvms = 1\ngenerations = {PLAIN=1}\ntime_scale = 0.0\n",
        "trace.time_scale",
        "expected more than 0",
    ),
    "endless time": (
        GOOD + "[trace]\nvms = 1\ngenerations = {PLAIN=1}\ntime_scale = inf\n",
        "trace.time_scale",
        "expected",
    ),
    "unknown cost": (GOOD + '[costs]\n"core.coffee_ns" = 3\n', "costs.core.coffee_ns", "a figure of the cost table"),
    "negative cost": (GOOD + "[costs]\ncore.exit_ns = -3\n", "costs.core.exit_ns", "expected at least 0"),
    "cost in words": (GOOD + '[costs]\ncore.exit_ns = "9"\n', "costs.core.exit_ns", "expected a number"),
    "not TOML": ("schema = = 1\n", "", "expected TOML, got"),
    "endless nesting": ("a = " + "[" * 20_000, "", "expected TOML within reason"),
    "endless number": ("a = " + "9" * 20_000, "", "expected TOML within reason"),
}


def lines_of_error(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", [("check",), ("run", "--out", "out", "--layout", "inline")])
def test_bad_scenarios_end_in_one_line_and_exit_code_2(
    kind: str, command: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, field, expectation = BAD[kind]
    (folder / "bad.toml").write_text(text)
    assert main([*command, "bad.toml"]) == 2
    (line,) = lines_of_error(capsys)
    assert line.startswith(f"sevfleet: bad.toml: {field}: " if field else "sevfleet: bad.toml: expected ")
    assert expectation in line
    assert ", got " in line
    assert [file.name for file in folder.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("data", "expectation"),
    [
        (b"\x7fELF\x02\x01\x01\0\xff\xfe\x80", "expected text in UTF-8, got 0xff"),
        ('name = "\u00e9"'.encode("latin-1"), "expected text in UTF-8, got 0xe9"),
        (bytes(100), "expected TOML, got"),
        (b"#" * (9 << 20), "expected a file of at most 8 MiB"),
    ],
)
def test_binary_rubbish_is_named_as_such(
    data: bytes, expectation: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.toml").write_bytes(data)
    assert main(["run", "bad.toml"]) == 2
    (line,) = lines_of_error(capsys)
    assert line.startswith("sevfleet: bad.toml: ")
    assert expectation in line


@pytest.mark.parametrize(
    ("word", "expectation"),
    [
        ("nowhere.toml", "nowhere.toml: expected a scenario file, got no such file"),
        (".", ".: expected a readable file, got Is a directory"),
        ("nowhere", 'scenario "nowhere": expected a .toml file or one of demo'),
    ],
)
def test_a_scenario_that_is_not_there_is_named(
    word: str, expectation: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", word]) == 2
    (line,) = lines_of_error(capsys)
    assert expectation in line


def test_a_disk_too_short_for_its_workload_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "block.img").write_bytes(bytes(4096))
    (folder / "bad.toml").write_text(GOOD.replace("key-value-store", "compile-job") + 'disk = "block.img"\n')
    assert main(["check", "bad.toml"]) == 2
    (line,) = lines_of_error(capsys)
    assert line == (
        'sevfleet: bad.toml: vms[0].disk of "db": expected at least 128 KiB for 1 vCPUs, got 4 KiB'
    )
    (folder / "block.img").write_bytes(bytes(128 << 10))
    assert main(["check", "bad.toml"]) == 0


def test_a_trace_with_broken_rows_is_named_with_its_file_and_column(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], "submission_time": ["noon", "night"]}), folder / "tasks.parquet")
    pq.write_table(pa.table({"id": [1]}), folder / "fragments.parquet")
    (folder / "bad.toml").write_text(
        GOOD + '[trace]\nsource = "."\nvms = 1\ngenerations = {PLAIN = 1}\n', encoding="utf-8"
    )
    assert main(["check", "bad.toml"]) == 2
    (line,) = lines_of_error(capsys)
    assert "tasks.parquet" in line
    assert "expected" in line


def test_the_good_scenario_that_the_bad_ones_were_made_of_is_good(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "good.toml").write_text(GOOD)
    assert main(["check", "good.toml"]) == 0
    assert capsys.readouterr().out == "good.toml: valid: 1 hosts, 1 VMs, 1 h\n"


def test_the_trace_of_a_real_data_centre_is_good(
    folder: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = f'[trace]\nsource = "{test_data / "trace"}"\nvms = 44\ngenerations = {{PLAIN = 1}}\n'
    (folder / "good.toml").write_text(GOOD + trace, encoding="utf-8")
    assert main(["check", "good.toml"]) == 0
    assert capsys.readouterr().out == "good.toml: valid: 1 hosts, 45 VMs, 1 h\n"


@pytest.mark.parametrize("command", [["check"], ["run", "--layout", "inline"], ["compare", "--layout", "inline"]])
def test_what_shows_only_when_a_fleet_is_laid_out_is_found_by_every_command_and_names_the_file(
    command: list[str], folder: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = f'[trace]\nsource = "{test_data / "trace"}"\nvms = 50\ngenerations = {{PLAIN = 1}}\n'
    found = {
        "short.toml": (GOOD + trace, "trace.vms: expected at most the 44 machines that the trace's window has, got 50"),
        "brief.toml": (
            GOOD.replace('"1 h"', '"9 min"') + "[trace]\nvms = 1\ngenerations = {PLAIN = 1}\ntime_scale = 2.0\n",
            "duration: expected at least 10 min with a generated trace, got 9 min",
        ),
        "full.toml": (GOOD + 'start = "running"\ncount = 99\n', "vms.db-63: expected a host with room at time zero"),
    }
    for file, (text, finding) in found.items():
        (folder / file).write_text(text, encoding="utf-8")
        assert main([*command, file]) == 2, file
        assert lines_of_error(capsys)[-1].startswith(f"sevfleet: {file}: {finding}")
