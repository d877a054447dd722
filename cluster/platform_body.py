"""A host's settings as what msgpack takes, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, fields
from typing import Any

from node.card_slot import CardSlot
from node.memory_cipher import CipherMode, XtsSector
from node.platform import HostMode, Platform, Protection
from psp.installed_firmware import TcbOf
from psp.key_messages import RootTcb
from tio.device_identity import CardKind


def platform_body(platform: Platform) -> dict[str, object]:
    """The settings by name: numbers, texts and lists."""
    values = {one.name: getattr(platform, one.name) for one in fields(platform)}
    cards = [astuple(one) for one in platform.cards]
    values["cards"] = [(port, kind.value, *more) for port, kind, *more in cards]
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}


def platform_of(body: Mapping[str, Any]) -> Platform:
    """The settings that ``platform_body`` took apart."""
    return Platform(**{name: _MADE[name](value) if name in _MADE else value for name, value in body.items()})


_MADE: Mapping[str, Callable[[Any], Any]] = {
    "mode": HostMode,
    "disabled": lambda names: frozenset(Protection(name) for name in names),
    "memory_cipher": lambda name: None if name is None else CipherMode(name),
    "xts_sector": XtsSector,
    "derived_keys": RootTcb,
    "reports_signed_for": TcbOf,
    "cards": lambda cards: tuple([CardSlot(port, CardKind(kind), *more) for port, kind, *more in cards]),
}
"""Settings that are more than a number or a text."""
