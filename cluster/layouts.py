"""The layouts a user may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.layout import Layout


def _inline(_: int | None) -> Layout:
    from cluster.inline_layout import InlineLayout  # noqa: PLC0415 - only the chosen layout is loaded

    return InlineLayout()


def _packed(workers: int | None) -> Layout:
    from cluster.actor_layout import ActorLayout, packed  # noqa: PLC0415

    return ActorLayout(packed(workers))


def _host(workers: int | None) -> Layout:
    from cluster.actor_layout import ActorLayout, one_each  # noqa: PLC0415

    return ActorLayout(one_each(workers))


def _isolated(workers: int | None) -> Layout:
    from cluster.isolated_layout import IsolatedLayout  # noqa: PLC0415

    return IsolatedLayout(workers)


LAYOUTS: Mapping[str, Callable[[int | None], Layout]] = {
    "inline": _inline,
    "packed": _packed,
    "host": _host,
    "isolated": _isolated,
}
"""Layouts by name; each is made for a number of workers, None for the default."""
