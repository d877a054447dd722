"""Folders of drivers that were killed are taken away by the next run, and nobody else's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ray_folder import new_folder, remove_left_behind

DRIVER = "import sys; from cluster.ray_folder import new_folder; print(new_folder(sys.argv[1]), flush=True); input()"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def folder_of(driver: "subprocess.Popen[str]") -> Path:
    assert driver.stdout is not None
    return Path(driver.stdout.readline().strip())


def killed(driver: "subprocess.Popen[str]") -> None:
    driver.kill()
    driver.wait()


def test_the_folder_of_a_driver_that_is_gone_makes_room_for_the_next(
    driver: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    folder = folder_of(driver)
    (folder / "session_1").mkdir()
    remove_left_behind(tmp_path)
    assert folder.is_dir()  # it lives
    killed(driver)
    mine = Path(new_folder(str(tmp_path)))
    assert list(tmp_path.iterdir()) == [mine]
    remove_left_behind(tmp_path)
    assert mine.is_dir()


def test_a_folder_that_a_process_still_names_stays(driver: "subprocess.Popen[str]", tmp_path: Path) -> None:
    folder = folder_of(driver)
    killed(driver)
    program = "print(flush=True); input()"
    command = [sys.executable, "-c", program, f"--temp-dir={folder}/session_1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        remove_left_behind(tmp_path)
        assert folder.is_dir()
        agent.kill()
    remove_left_behind(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize(
    "word",
    ["", "nonsense", "another-boot pid:[4026531836] 1 1", "x y 4194304000 1"],
    ids=["no words", "nonsense", "another machine", "another namespace"],
)
def test_what_does_not_say_whose_it_is_or_is_of_another_machine_stays(word: str, tmp_path: Path) -> None:
    folder = tmp_path / "sf-foreign"
    folder.mkdir()
    remove_left_behind(tmp_path)
    (folder / "driver").write_text(word)
    remove_left_behind(tmp_path)
    assert folder.is_dir()


def test_a_process_that_got_the_number_of_the_driver_does_not_keep_its_folder(tmp_path: Path) -> None:
    folder = Path(new_folder(str(tmp_path)))
    file = folder / "driver"
    *where, pid, start = file.read_text().split()
    assert int(pid) == os.getpid()
    file.write_text(" ".join([*where, pid, str(int(start) + 1)]))
    remove_left_behind(tmp_path)
    assert not folder.exists()


def test_a_link_under_our_name_is_not_followed(driver: "subprocess.Popen[str]", tmp_path: Path) -> None:
    folder = folder_of(driver)
    killed(driver)
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    remove_left_behind(tmp_path)
    assert elsewhere.is_dir()
