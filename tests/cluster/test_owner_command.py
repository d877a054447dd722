"""``sevfleet owner``: the documented steps work, and the owner refuses what it should."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.commands import owner
from node.laboratory_firmware import build_image
from node.product import PRODUCTS
from psp.sev_certificate import SevCertificate

PROJECT = Path(__file__).parents[2]
SECRET = b"what opens the disk"
POLICIES = {"sev": ("0x1",), "sev-es": ("0x5", "--vcpus", "2", "--vcpu-type", "EPYC-v4")}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    image = bytearray(build_image())
    (folder / "good.fd").write_bytes(image)
    image[0] ^= 1
    (folder / "other.fd").write_bytes(image)
    return folder


@pytest.fixture
def say(capsys):
    """Take one step that must succeed; what it printed."""

    def run(*arguments):
        code = main(["owner", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return run


@pytest.fixture
def refuse(capsys):
    """Take one step that must not succeed; its one line."""

    def run(*arguments):
        code = main(["owner", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The certificates of platform 7, made once."""
    folder = tmp_path_factory.mktemp("platform") / "guest"
    assert main(["owner", "platform", "--folder", str(folder), "--seed", "7"]) == 0
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "guest")


@pytest.fixture
def expected(images, capsys):
    """What ``sevfleet measure`` says of the good image."""

    def run(kind):
        policy, *vcpus = POLICIES[kind]
        mode = "seves" if int(policy, 0) & 4 else "sev"
        assert main(["measure", "--mode", mode, "--ovmf", str(images / "good.fd"), *vcpus]) == 0
        return capsys.readouterr().out.strip()

    return run


def launch_options(images, kind="sev", image="good.fd"):
    policy, *vcpus = POLICIES[kind]
    return ("--seed", 7, "--ovmf", images / image, "--policy", policy, *vcpus)


def to_measurement(say, folder, images, kind="sev", image="good.fd"):
    say("session", "--folder", folder, "--policy", POLICIES[kind][0])
    say("launch", "--folder", folder, *launch_options(images, kind, image))


@pytest.mark.parametrize("kind", POLICIES)
def test_a_secret_goes_from_its_owner_to_its_guest_and_not_to_the_host(say, folder, images, expected, kind):
    (folder / "key.txt").write_bytes(SECRET)
    to_measurement(say, folder, images, kind)
    policy = POLICIES[kind][0]
    checks = ("--folder", folder, "--digest", expected(kind), "--firmware", "0.24.15", "--policy", policy)
    assert "the guest you expect" in say("secret", *checks)
    say("secret", *checks, "--secret", folder / "key.txt")
    (folder / "key.txt").unlink()
    (folder / "tmp_tk.bin").unlink()  # the host has neither
    host, guest = say("inject", "--folder", folder, *launch_options(images, kind)).splitlines()
    assert guest == f"the guest reads there: {SECRET!r}"
    assert SECRET[:16].hex() not in host
    assert "0x810000" in host


def test_the_steps_of_the_readme_work_as_they_stand_there(images, tmp_path):
    block = (PROJECT / "README.md").read_text("utf-8").partition("    # The host exports its certificates")[2]
    steps = "# " + block.partition("\n\n")[0]
    assert steps.count("sevfleet owner ") == len(owner._STEPS)
    shutil.copy(images / "good.fd", tmp_path / "OVMF.fd")
    (tmp_path / "key.txt").write_bytes(SECRET)
    command = f'sevfleet() {{ {shlex.quote(sys.executable)} -m cluster.cli "$@"; }}\nset -e\n{steps}'
    ran = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == f"the guest reads there: {SECRET!r}"


def test_the_files_have_amds_sizes(say, folder, images, expected):
    (folder / "key.txt").write_bytes(SECRET)
    to_measurement(say, folder, images)
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    say("secret", *checks, "--secret", folder / "key.txt")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "key.txt"}
    assert sizes == {
        "pdh.cert": 0x824, "pek.cert": 0x824, "oca.cert": 0x824, "cek.cert": 0x824, "ask.cert": 832, "ark.cert": 832,
        "godh.cert": 0x824, "launch_blob.bin": 0x80, "tmp_tk.bin": 32, "measurement.bin": 48,
        "packaged_secret_header.bin": 0x34, "packaged_secret.bin": 32,
    }  # fmt: skip


def test_the_same_seeds_give_the_same_files_and_others_do_not(say, folder, images, tmp_path, exported):
    again = shutil.copytree(exported, tmp_path / "again")
    other = shutil.copytree(exported, tmp_path / "other")
    for one in (folder, again):
        to_measurement(say, one, images)
    files = [{path.name: path.read_bytes() for path in one.iterdir()} for one in (folder, again)]
    assert files[0] == files[1]
    say("session", "--folder", other, "--owner-seed", 2)
    assert (other / "tmp_tk.bin").read_bytes() != files[0]["tmp_tk.bin"]
    say("platform", "--folder", other, "--seed", 8)
    assert (other / "cek.cert").read_bytes() != files[0]["cek.cert"]
    assert (other / "ask.cert").read_bytes() == files[0]["ask.cert"]


def test_a_host_that_launches_another_image_gets_no_secret(say, refuse, folder, images, expected):
    (folder / "key.txt").write_bytes(SECRET)
    to_measurement(say, folder, images, image="other.fd")
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    assert "the owner refused: measurement" in refuse("secret", *checks, "--secret", folder / "key.txt")
    assert not (folder / "packaged_secret.bin").exists()


@pytest.mark.parametrize("at", [0, 31, 32, 47])
def test_a_measurement_with_a_changed_byte_is_refused(say, refuse, folder, images, expected, at):
    to_measurement(say, folder, images)
    measurement = bytearray((folder / "measurement.bin").read_bytes())
    measurement[at] ^= 1
    (folder / "measurement.bin").write_bytes(measurement)
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    assert "the owner refused: measurement" in refuse("secret", *checks)


@pytest.mark.parametrize(
    "options",
    [("--firmware", "0.24.14"), ("--firmware", "0.17.15"), ("--firmware", "0.24.15", "--policy", "0x0")],
)
def test_firmware_and_policy_are_part_of_what_is_measured(say, refuse, folder, images, expected, options):
    to_measurement(say, folder, images)
    assert "measurement" in refuse("secret", "--folder", folder, "--digest", expected("sev"), *options)


def test_a_host_that_changes_the_policy_is_refused_by_the_firmware(say, refuse, folder, images):
    say("session", "--folder", folder, "--policy", "0x1")
    said = refuse("launch", "--folder", folder, "--seed", 7, "--ovmf", images / "good.fd", "--policy", "0x0")
    assert "LAUNCH_START: BAD_MEASUREMENT" in said


@pytest.mark.parametrize("other", [("--seed", 8), ("--seed", 7, "--product", "Genoa")], ids=["seed", "product line"])
def test_a_session_is_for_one_platform(say, refuse, folder, images, other):
    say("session", "--folder", folder)
    said = refuse("launch", "--folder", folder, *other, "--ovmf", images / "good.fd")
    assert "LAUNCH_START: BAD_MEASUREMENT" in said


def test_a_chain_is_held_against_the_root_that_the_owner_trusts(say, refuse, folder, exported):
    ark = hashlib.sha256((exported / "ark.cert").read_bytes()).hexdigest()
    assert f"SHA-256 is {ark}" in say("session", "--folder", folder)
    assert f"up to the root that you trust {ark}" in say("session", "--folder", folder, "--root", ark)
    (folder / "tmp_tk.bin").unlink()
    said = refuse("session", "--folder", folder, "--root", "0" * 64)
    assert f"ark.cert: expected a root of SHA-256 {'0' * 64}" in said
    assert not (folder / "tmp_tk.bin").exists()
    assert "--root: expected 64 hexadecimal digits" in refuse("session", "--folder", folder, "--root", "00")


@pytest.mark.parametrize("name", owner.CERTIFICATES)
def test_a_chain_with_a_changed_byte_opens_no_session(refuse, folder, name):
    path = folder / f"{name}.cert"
    data = bytearray(path.read_bytes())
    data[0x48] ^= 0x10  # in every format a byte of the key
    path.write_bytes(data)
    assert "the owner refused" in refuse("session", "--folder", folder)
    assert not (folder / "tmp_tk.bin").exists()


def test_a_real_platform_s_chain_opens_a_session_and_a_mixed_one_does_not(say, refuse, folder, test_data, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    for name in owner.CERTIFICATES:
        shutil.copy(test_data / "vectors" / f"naples-{name}.cert", real / f"{name}.cert")
    say("session", "--folder", real)
    shutil.copy(folder / "ask.cert", real / "ask.cert")
    assert "ASK certificate" in refuse("session", "--folder", real)
    shutil.copy(folder / "ark.cert", real / "ark.cert")
    assert "CEK certificate" in refuse("session", "--folder", real)


@pytest.mark.parametrize("name", ["packaged_secret.bin", "packaged_secret_header.bin"])
def test_a_packet_with_a_changed_byte_is_refused_by_the_firmware(say, refuse, folder, images, expected, name):
    (folder / "key.txt").write_bytes(SECRET)
    to_measurement(say, folder, images)
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    say("secret", *checks, "--secret", folder / "key.txt")
    data = bytearray((folder / name).read_bytes())
    data[8] ^= 1
    (folder / name).write_bytes(data)
    said = refuse("inject", "--folder", folder, *launch_options(images))
    assert "LAUNCH_SECRET: BAD_MEASUREMENT" in said


BAD = {
    "no step": ((), "STEP"),
    "no folder": (("platform",), "--folder"),
    "no certificates": (("session", "--folder", "/nowhere"), "/nowhere/pdh.cert: No such file"),
    "folder in a file": (("platform", "--folder", "/dev/null/x"), "/dev/null/x: Not a directory"),
    "unknown product": (("platform", "--folder", "x", "--product", "Vega"), "--product: expected one of Naples"),
    "bad digest": (("secret", "--folder", "x", "--firmware", "0.24.15", "--digest", "12"), "--digest: expected 64"),
    "bad firmware": (("secret", "--folder", "x", "--digest", "00" * 32, "--firmware", "1.2"), "--firmware: expected"),
    "wide firmware": (("secret", "--folder", "x", "--digest", "00" * 32, "--firmware", "1.2.256"), "--firmware: exp"),
    "padded firmware": (("secret", "--folder", "x", "--digest", "00" * 32, "--firmware", "1.2.0001"), "--firmware: e"),
    "long firmware": (
        ("secret", "--folder", "x", "--digest", "00" * 32, "--firmware", "1.2." + "1" * 5000), "--firmware: exp"),
    "wide policy": (("session", "--folder", "x", "--policy", hex(1 << 32)), "--policy: expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line(refuse, case):
    arguments, said = BAD[case]
    assert said in refuse(*arguments)


def test_a_file_of_the_wrong_size_is_named(say, refuse, folder, images):
    say("session", "--folder", folder)
    (folder / "launch_blob.bin").write_bytes(bytes(127))
    assert "launch_blob.bin: expected 128 bytes, got 127" in refuse(
        "launch", "--folder", folder, *launch_options(images)
    )
    (folder / "godh.cert").write_bytes(bytes(SevCertificate.SIZE + 1))
    assert "godh.cert: expected 2084 bytes" in refuse("launch", "--folder", folder, *launch_options(images))


def test_es_needs_vcpus_and_an_address_lies_in_ram(say, refuse, folder, images, expected):
    say("session", "--folder", folder, "--policy", "0x5")
    options = ("--folder", folder, "--seed", 7, "--ovmf", images / "good.fd", "--policy", "0x5")
    assert "--vcpus: expected" in refuse("launch", *options)
    (folder / "key.txt").write_bytes(SECRET)
    to_measurement(say, folder, images)
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    say("secret", *checks, "--secret", folder / "key.txt")
    said = refuse("inject", "--folder", folder, *launch_options(images), "--address", "0xfffffff0")
    assert "--address: expected" in said


@pytest.mark.parametrize("size", [0, 16 * 1024 + 1])
def test_a_secret_has_bytes_and_not_too_many(say, refuse, folder, images, expected, size):
    (folder / "key.txt").write_bytes(bytes(size))
    to_measurement(say, folder, images)
    checks = ("--folder", folder, "--digest", expected("sev"), "--firmware", "0.24.15")
    assert "key.txt: expected 1 to 16384 bytes" in refuse("secret", *checks, "--secret", folder / "key.txt")


def test_every_product_s_platform_can_be_asked_for(tmp_path, say):
    assert set(owner.PRODUCT_NAMES) == set(PRODUCTS)
    for product in ("Rome", "Milan", "Turin"):
        said = say("platform", "--folder", tmp_path / product, "--product", product)
        assert ".".join(map(str, PRODUCTS[product].firmware_api)) in said


def test_every_step_has_help_with_an_example(capsys):
    for step in owner._STEPS:
        with pytest.raises(SystemExit):
            main(["owner", step, "--help"])
        assert f"example:\n  sevfleet owner {step} --folder" in capsys.readouterr().out


def test_what_is_measured_is_the_image(images, expected):
    assert expected("sev") == hashlib.sha256((images / "good.fd").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["pdh", "oca", "cek"])
def test_a_byte_in_the_empty_signature_slot_of_a_certificate_is_refused(refuse, folder, name):
    data = bytearray((folder / f"{name}.cert").read_bytes())
    data[2083] ^= 1
    (folder / f"{name}.cert").write_bytes(data)
    line = refuse("session", "--folder", folder)
    assert f"{name.upper()} certificate: expected nothing in the empty second signature slot" in line
    assert not (folder / "godh.cert").exists()
