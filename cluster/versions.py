"""The versions that results follow from."""

from __future__ import annotations

from importlib import metadata

from cluster.actor_shell import LIBRARIES


def versions() -> dict[str, str]:
    """Sevfleet's own version, and those of the libraries that a worker computes with."""
    return {name: metadata.version(name) for name in ("sevfleet", *LIBRARIES)}
