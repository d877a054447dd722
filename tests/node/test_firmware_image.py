"""Finding firmware: a named image, an installed one, or the laboratory's own, and which it was."""

import hashlib
import os
from pathlib import Path

import pytest

from node.firmware_image import (
    IMAGE_VARIABLE,
    LABORATORY_ORIGIN,
    find_firmware_image,
    firmware_image,
    laboratory_image,
    read_firmware_image,
)
from node.laboratory_firmware import build_image
from node.ovmf import MAX_IMAGE_BYTES, FirmwareImageError

WITHOUT_METADATA = bytes(8192)


@pytest.fixture
def other_image(tmp_path):
    path = tmp_path / "other.fd"
    path.write_bytes(build_image(8192))
    return path


def test_the_laboratory_image_is_the_same_everywhere():
    image = laboratory_image()
    assert image.origin == LABORATORY_ORIGIN
    assert image.launches_snp
    assert image.gpa + len(image.data) == 1 << 32
    assert image.sha256 == hashlib.sha256(image.data).hexdigest()
    assert image.sha256 == "5ab1afc8f142edfd78c5e2a385d2b4f192be7e589c87242b9a06d1c8a496f5eb"


def test_without_any_file_the_laboratory_image_serves(tmp_path):
    assert find_firmware_image({}, [tmp_path / "missing"]) == laboratory_image()


def test_the_environment_goes_before_the_usual_paths(tmp_path, other_image):
    installed = tmp_path / "installed.fd"
    installed.write_bytes(build_image())
    assert find_firmware_image({IMAGE_VARIABLE: str(other_image)}, [installed]).origin == str(other_image)
    assert find_firmware_image({}, [installed, other_image]).origin == str(installed)
    assert find_firmware_image({IMAGE_VARIABLE: ""}, [other_image]).origin == str(other_image)


def test_an_installed_image_without_sev_metadata_is_passed_over(tmp_path, other_image):
    plain = tmp_path / "plain.fd"
    plain.write_bytes(WITHOUT_METADATA)
    assert find_firmware_image({}, [plain, other_image]).origin == str(other_image)
    with pytest.raises(FirmwareImageError, match=r"plain\.fd: SEV metadata: expected"):
        find_firmware_image({IMAGE_VARIABLE: str(plain)}, [other_image])


def test_a_broken_installed_image_is_an_error_that_names_the_file(tmp_path, other_image):
    broken = tmp_path / "broken.fd"
    broken.write_bytes(build_image()[:-100])
    with pytest.raises(FirmwareImageError, match=r"broken\.fd: size: expected"):
        find_firmware_image({}, [broken, other_image])


def test_a_missing_named_image_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FirmwareImageError, match="gone: file: expected a readable file") as error:
        find_firmware_image({IMAGE_VARIABLE: str(tmp_path / "gone")}, [])
    assert error.value.origin == str(tmp_path / "gone")


def test_an_endless_file_costs_one_image_and_is_refused():
    with pytest.raises(FirmwareImageError, match=f"found {MAX_IMAGE_BYTES + 1}"):
        read_firmware_image(Path("/dev/zero"))


def test_parse_errors_name_the_origin():
    with pytest.raises(FirmwareImageError, match=r"^attic: size: expected"):
        firmware_image(b"", "attic")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FirmwareImageError, match="file: expected a regular file, found a pipe"):
        read_firmware_image(tmp_path / "fifo")
