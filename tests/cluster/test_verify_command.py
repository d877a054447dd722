"""``sevfleet verify``: believes AMD's real reports, and says in one line why it refuses."""

import shutil

import pytest

from cluster.cli import main
from psp import verifier

AT = ("--at", "2024-01-31")


@pytest.fixture(scope="module")
def vectors(test_data):
    return test_data / "vectors"


@pytest.fixture
def judge(capsys, vectors):
    """Exit code and output for a real report."""

    def run(*arguments, report="milan-v2-report-b.hex", certs=None):
        code = main(["verify", str(vectors / report), "--certs", str(certs or vectors), *AT, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out.splitlines() or err.splitlines()

    return run


def test_real_reports_are_believed_under_amds_root(judge):
    code, lines = judge("--root", "amd", "--min-tcb", "bootloader=3,snp=8,microcode=115", "--product", "Milan")
    assert code == 0
    assert lines[-1].endswith("under AMD's root for Milan")
    assert any(line.startswith("TCB ") and "microcode=115" in line for line in lines)
    code, lines = judge("--allow-debug", report="milan-v2-report-a.bin")
    assert (code, lines[-1].split(":")[0]) == (0, "believed")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--measurement", "00" * 48), "MEASUREMENT_UNEXPECTED"),
        (("--report-data", "00" * 64), "REPORT_DATA_UNEXPECTED"),
        (("--nonce", "00" * 32), "NONCE_UNEXPECTED"),
        (("--min-tcb", "microcode=116"), "TCB_LOW"),
        (("--min-tcb", "fmc=1"), "TCB_LOW"),
        (("--pinned-tcb", "snp=7"), "TCB_UNEXPECTED"),
        (("--min-launch-tcb", "snp=9"), "LAUNCH_TCB_LOW"),
        (("--min-firmware", "1.53.0"), "FIRMWARE_LOW"),
        (("--product", "Turin"), "PRODUCT_UNEXPECTED"),
        (("--chip-id", "00" * 63 + "01"), "CHIP_UNLISTED"),
        (("--policy", "0x20000"), "POLICY_UNEXPECTED"),
        (("--policy-set", "0x100000"), "POLICY_BIT_MISSING"),
        (("--platform-set", "0x20"), "PLATFORM_BIT_MISSING"),
        (("--vmpl", "1"), "VMPL_UNEXPECTED"),
        (("--id-key", "00" * 48), "ID_KEY_MISSING"),
        (("--crl",), "CRL_MISSING"),
        (("--root", "00" * 32), "ROOT_UNKNOWN"),
        (("--at", "2019-01-01"), "ARK_NOT_YET_VALID"),
    ],
)
def test_each_option_can_refuse(judge, arguments, code):
    exit_code, lines = judge(*arguments)
    assert exit_code == 1
    assert lines[-1].startswith(f"rejected: {code} (")


def test_a_guest_that_nobody_may_move_needs_no_agent_of_the_list(judge):
    code, lines = judge("-v", "--agent", "00" * 32)
    assert code == 0
    assert [line.split()[2] for line in lines if "MIGRATION_AGENT_UNLISTED " in line] == ["not"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((), "not"), (("--agent", "00" * 32), "ok"), (("--agent", "00" * 32, "--min-launch-tcb", "snp=8"), "ok")],
)
def test_the_lowest_tcb_is_that_of_the_launch_too_where_a_guest_may_have_been_launched_elsewhere(
    judge, arguments, word
):
    code, lines = judge("-v", "--min-tcb", "snp=8,microcode=115", *arguments)
    assert code == 0
    assert [line.split()[3] for line in lines if "LAUNCH_TCB_LOW " in line] == [word]
    code, lines = judge("--min-tcb", "snp=8", "--min-launch-tcb", "snp=9", *arguments[:2])
    assert lines[-1].startswith("rejected: LAUNCH_TCB_LOW (")


@pytest.mark.parametrize(
    ("arguments", "floor"),
    [
        (("--pinned-tcb", "snp=8"), {"snp": 8}),
        (("--min-tcb", "snp=7"), {"snp": 7}),
        (("--pinned-tcb", "snp=8", "--min-tcb", "microcode=115"), {"snp": 8, "microcode": 115}),
        (("--pinned-tcb", "snp=8", "--min-tcb", "snp=7,microcode=115"), {"snp": 8, "microcode": 115}),
        (("--pinned-tcb", "microcode=115", "--min-tcb", "microcode=114"), {"microcode": 115}),
        ((), None),
    ],
)
def test_a_pinned_tcb_is_a_floor_for_that_launch_too_and_of_two_the_higher_counts(
    judge, monkeypatch, arguments, floor
):
    asked = []
    verify = verifier.verify
    monkeypatch.setattr(verifier, "verify", lambda *given: asked.append(given) or verify(*given))
    code, lines = judge("-v", "--agent", "00" * 32, *arguments)
    assert (code, asked[0][1].min_launch_tcb) == (0, floor)
    assert [line.split()[3] for line in lines if "LAUNCH_TCB_LOW " in line] == ["not" if floor is None else "ok"]
    judge("-v", *arguments)
    assert asked[1][1].min_launch_tcb is None


def test_a_debugged_guest_is_refused(judge):
    code, lines = judge("-v", report="milan-v2-report-a.bin")
    assert code == 1
    assert lines[-1] == "rejected: POLICY_DEBUG (policy): report.policy: expected no debugging, got 0xb0000"
    # What was checked before stands in the table, each by its code.
    assert [line.split()[2] for line in lines if "REPORT_SIGNATURE " in line] == ["ok"]


def test_a_changed_report_and_a_wrong_vcek_are_refused(judge, vectors, tmp_path):
    report = bytearray.fromhex((vectors / "milan-v2-report-b.hex").read_text())
    report[0x91] ^= 1
    (tmp_path / "report.bin").write_bytes(report)
    code, lines = judge(report=tmp_path / "report.bin")
    assert (code, lines[-1].split()[1]) == (1, "REPORT_SIGNATURE")
    for file in ("milan-ask-ark.pem", "milan-v2-vcek-a.der"):
        shutil.copy(vectors / file, tmp_path)
    code, lines = judge(certs=tmp_path)
    assert (code, lines[-1].split()[1]) == (1, "REPORTED_TCB_MISMATCH")


def test_broken_files_are_judged_not_feared(judge, tmp_path):
    for name in ("ark.pem", "ask.pem", "vcek.der"):
        (tmp_path / name).write_bytes(b"\x30\x80")
    code, lines = judge(certs=tmp_path)
    assert (code, lines[-1].split()[1]) == (1, "ARK_MALFORMED")
    (tmp_path / "report").write_bytes(b"")
    code, lines = judge(report=tmp_path / "report")
    assert (code, lines[-1].split()[1]) == (1, "REPORT_LENGTH")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--measurement", "00"), ("--min-tcb", "spl=1"), ("--min-tcb", "snp=256"), ("--min-tcb", "snp=1,snp=2"),
        ("--at", "soon"), ("--root", "mine"), ("--vmpl", "4"), ("--product", "Naples"), ("--min-firmware", "1.2"),
        ("--chip-id", "00"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(judge, arguments):
    code, lines = judge(*arguments)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"sevfleet: {arguments[0]}: expected ")


def test_files_that_are_not_there_are_exit_code_2(judge, tmp_path):
    for options in ({"report": tmp_path / "none"}, {"certs": tmp_path / "none"}):
        code, lines = judge(**options)
        assert (code, len(lines)) == (2, 1)


@pytest.mark.parametrize(
    ("product", "version"),
    [("Milan", 2), ("Milan", 3), ("Genoa", 4), ("Genoa", 5), ("Siena", 3), ("Turin", 2), ("Turin", 5)],
)
def test_reports_of_emulated_guests_are_believed_and_changed_ones_are_not(capsys, tmp_path, product, version):
    asked = ("--product", product, "--report-version", str(version), "--report-data", "c0ffee")
    assert main(["attest", *asked, "--out", str(tmp_path)]) == 0
    measurement = capsys.readouterr().out.split()[-1]
    report = tmp_path / "report.bin"
    expected = ("--measurement", measurement, "--report-data", "c0ffee", "--product", product, "--crl")
    judged = ["verify", str(report), "--certs", str(tmp_path), "--at", "2026-06-01", *expected]
    assert main(judged) == 0
    assert "that is not AMD's" in capsys.readouterr().out
    assert main([*judged, "--root", "amd"]) == 1
    assert "ROOT_UNKNOWN" in capsys.readouterr().out
    data = bytearray(report.read_bytes())
    data[0x141] ^= 1
    report.write_bytes(data)
    assert main(judged) == 1
    assert "rejected: REPORT_SIGNATURE" in capsys.readouterr().out
