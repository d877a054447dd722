"""The parts of a scenario that are about the security processor's firmware."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from cluster.scenario_fields import Name, ScenarioPart, refuse
from cluster.units import Duration
from psp.installed_firmware import Version
from psp.verifier.tcb_version import COMPONENTS, HIGHEST_LEVEL

_FORM = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})", re.ASCII)


def _version(value: object) -> object:
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None or any(int(part) > 255 for part in found.groups()):
        raise refuse('a version like "1.55.29": major, minor and build, each up to 255')
    return value


VersionText = Annotated[str, BeforeValidator(_version), WithJsonSchema({"type": "string", "pattern": _FORM.pattern})]


_LEVELS = re.compile(r"([a-z]+=\d{1,3})(,[a-z]+=\d{1,3})*", re.ASCII)


def _tcb(value: object) -> object:
    found = isinstance(value, str) and _LEVELS.fullmatch(value)
    levels = [part.split("=") for part in str(value).split(",")] if found else []
    names = [name for name, _ in levels]
    known = len(set(names)) == len(names) and set(names) <= set(COMPONENTS)
    if not found or not known or any(int(level) > HIGHEST_LEVEL for _, level in levels):
        raise refuse(f'levels like "snp=24,microcode=219" of {", ".join(COMPONENTS)}, each up to {HIGHEST_LEVEL}')
    return value


TcbText = Annotated[str, BeforeValidator(_tcb), WithJsonSchema({"type": "string", "pattern": _LEVELS.pattern})]


def levels_of(text: str) -> Mapping[str, int]:
    """The components of a TCB that a scenario names."""
    return {name: int(level) for name, _, level in (part.partition("=") for part in text.split(","))}


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
