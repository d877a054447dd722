"""The layouts a user may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.layout import Layout, LayoutError


def _inline(workers: int | None, address: str | None) -> Layout:
    from cluster.inline_layout import InlineLayout  # noqa: PLC0415 - only the chosen layout is loaded

    if address is not None:
        raise LayoutError(f"address: expected none with layout inline, which runs in this process, got {address}")
    if workers is not None:
        raise LayoutError(f"workers: expected none with layout inline, which runs in this process, got {workers}")
    return InlineLayout()


def _packed(workers: int | None, address: str | None) -> Layout:
    from cluster.actor_layout import ActorLayout, packed  # noqa: PLC0415

    return ActorLayout(packed(workers), address)


def _host(workers: int | None, address: str | None) -> Layout:
    from cluster.actor_layout import ActorLayout, one_each  # noqa: PLC0415

    return ActorLayout(one_each(workers), address)


def _isolated(workers: int | None, address: str | None) -> Layout:
    from cluster.isolated_layout import IsolatedLayout  # noqa: PLC0415

    return IsolatedLayout(workers, address)


LAYOUTS: Mapping[str, Callable[[int | None, str | None], Layout]] = {
    "inline": _inline,
    "packed": _packed,
    "host": _host,
    "isolated": _isolated,
}
"""Layouts by name; each is made for a number of workers, None for the default, and a Ray cluster, None for our own."""
