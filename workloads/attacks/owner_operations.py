"""What code in a guest does over the network, through a hypervisor that has no say in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AskOwner:
    """The code of a guest asks the victim's owner for its secret, with a report of the guest it runs in.

    ``context`` is the Context page that the hypervisor names to the firmware for the
    request; ``code`` and ``secrets`` are the frames behind the guest's code and its secrets
    page. Answer: the secret, or None where the owner sends nothing.
    """

    context: int
    code: int
    secrets: int
