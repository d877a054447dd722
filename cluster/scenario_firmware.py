"""The parts of a scenario that are about the security processor's firmware."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from cluster.scenario_fields import Name, ScenarioPart, refuse
from cluster.units import Duration
from psp.installed_firmware import Version

_FORM = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})", re.ASCII)


def _version(value: object) -> object:
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None or any(int(part) > 255 for part in found.groups()):
        raise refuse('a version like "1.55.29": major, minor and build, each up to 255')
    return value


VersionText = Annotated[str, BeforeValidator(_version), WithJsonSchema({"type": "string", "pattern": _FORM.pattern})]


def version_of(text: str) -> Version:
    """The three numbers of a version that a scenario names."""
    major, minor, build = map(int, text.split("."))
    return major, minor, build


class FirmwareUpdatePlan(ScenarioPart):
    """Hosts whose security processor gets other firmware while their SEV-SNP guests run."""

    host: Name
    """A host, or a group for all its hosts."""
    at: Duration
    """When it is asked for."""
    to: VersionText
    """A version of which the host's product is known to have been seen; older ones to roll back."""
    commit_after: Duration | None = None
    """When this has passed since then, what runs is committed. Default: never, it stays provisional."""
