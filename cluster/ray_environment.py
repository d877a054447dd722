"""The surroundings in which Ray is started or joined: environment variables, and a folder for its files."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.errors import UserError
from cluster.ray_tls import SETTINGS

LONGEST_FOLDER = 28
"""Most bytes of the folder for temporary files: Ray adds up to 76 for its sockets, whose paths hold 107 (unix(7))."""
_THEIRS = "RAY_"
TO_BE_LET_IN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *SETTINGS)
"""What a user sets to be let into a cluster."""
_UNBEARABLE = ("PYTHONOPTIMIZE",)
"""What Ray's own programs do not start with: at 2 they miss their docstrings."""
_OURS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_OURS_ALONE = {
    "RAY_AUTH_MODE": "disabled",
    # Under its name of Windows and macOS, where it is the default: listen on the loopback address alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class FolderError(UserError):
    """No folder for temporary files that Ray can use."""


def short_folder() -> str:
    """Where temporary files go, or /tmp where that path is too long for sockets in it."""
    for folder in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a folder of our own is made in it
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise FolderError(f"TMPDIR: expected a folder of at most {LONGEST_FOLDER} bytes, got {tempfile.gettempdir()}")


@contextlib.contextmanager
def clean_environment(keep: Sequence[str] = (), *, alone: bool = False) -> Iterator[None]:
    """Nothing that was set for another Ray but what is to be kept, or that hinders this one, and not a word from it.

    Afterwards all is as it was: Ray leaves things there that are not its own, such as who answers ``breakpoint()``.
    """
    before = dict(os.environ)
    for name in before:
        if (name.startswith(_THEIRS) and name not in keep) or name in _UNBEARABLE:
            del os.environ[name]
    # Workers of our own Ray import from where this process does.
    os.environ.update(_OURS, **(_OURS_ALONE if alone else {}))
    os.environ["PYTHONPATH"] = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)
