"""``sevfleet version``: what runs here, for a report of a problem."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

NAME = "version"
HELP = "print the versions of sevfleet and what it stands on"
DESCRIPTION = "Prints the versions that results depend on, one a line."
EXAMPLE = "sevfleet version"

_LIBRARIES = ("ray", "cryptography", "numpy", "simpy", "pyarrow", "pydantic", "msgpack")


def configure(parser: argparse.ArgumentParser) -> None:
    """It takes no arguments."""


def execute(arguments: argparse.Namespace) -> int:
    """Print them."""
    from cryptography.hazmat.backends.openssl import backend

    print(f"sevfleet {metadata.version('sevfleet')}")
    print(f"Python {platform.python_version()}")
    for library in _LIBRARIES:
        print(f"{library} {metadata.version(library)}")
    print(backend.openssl_version_text())
    return 0
