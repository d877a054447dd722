"""What every floor's tests share: data, patience with a busy machine, and where tests that start Ray run."""

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is. Whatever else hypothesis chose for this machine stays.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

PROJECT = Path(__file__).resolve().parent.parent


def missing(what: str) -> None:
    """Skip, or fail where the continuous integration promised to have everything."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI is set")
    pytest.skip(what)


@pytest.fixture(scope="session")
def test_data() -> Path:
    folder = Path(os.environ.get("SEVFLEET_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        missing(f"no test data in {folder}; name its folder in SEVFLEET_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        missing("no promtool on the PATH (Debian package prometheus)")
    return str(found)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray wait for most of their time, but many at once would starve each other: two groups."""
    files = sorted({item.path for item in items if item.get_closest_marker("ray")})
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group(f"ray {2 * files.index(item.path) // len(files)}"))


def pytest_collection_finish() -> None:
    """Modules and tests stay: half a million objects that nobody is to look through for garbage again and again."""
    gc.collect()
    gc.freeze()
