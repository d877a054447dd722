"""What a hypervisor does to move its victim: with its own machinery, here and on another host of the same attacker's.

What firmware and agents say to each other on the way passes through its hands, and so does all that travels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeepPlace:
    """Have the other host keep a place for the victim, instead of one that it may have there.

    Answer: what its platform or its migration agent shows to the source, with AMD's certificates, empty for nothing.
    """


@dataclass(frozen=True, slots=True)
class Agree:
    """Have the victim's firmware, or its agent, agree with whoever shows ``shown``.

    Answer: what is to be opened there, empty for nothing; None where it will not.
    """

    shown: bytes


@dataclass(frozen=True, slots=True)
class OpenThere:
    """Have firmware or agent of the other host take what ``Agree`` has answered. Answer: None, or why not."""

    session: bytes


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Stop the victim and read it whole. Answer: what travels, as of ``workloads.attacks.stream``; None if it stays."""


@dataclass(frozen=True, slots=True)
class LayThere:
    """Lay down in the place that was kept what travelled. Answer: None, or why it does not come up."""

    stream: bytes


@dataclass(frozen=True, slots=True)
class RunThere:
    """Let the victim run on the other host until it rests. Answer: None."""


@dataclass(frozen=True, slots=True)
class StayHere:
    """The move is called off: the victim goes on here. Answer: None."""


@dataclass(frozen=True, slots=True)
class GoOnHere:
    """Nothing is called off, and the victim goes on here all the same. Answer: None, or why it cannot."""

    stream: bytes
    """What travelled, to have its pages again."""


MoveOperation = KeepPlace | Agree | OpenThere | TakeOut | LayThere | RunThere | StayHere | GoOnHere
