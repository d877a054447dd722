"""What is said over the network, through a hypervisor that has no say in it, and by code in guests that an attacker made.

A guest of an attacker's is too small to run: the laboratory acts for its code, by what that code is.
"""

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


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Whoever runs a platform shows its certificates: PDH, then PEK, OCA and CEK in one.

    Answer: the owner's certificate and session block, one behind the other, or None.
    """

    pdh: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class ShowMeasurement:
    """Whoever runs a platform shows a measurement (48 bytes), and says of which firmware (major, minor, build) it is.

    Answer: header and packet of the secret, one behind the other, or None.
    """

    measurement: bytes
    firmware: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ReadInjected:
    """The code of a SEV guest goes on, and reads what its owner sent it: ``length`` bytes at a frame's ``offset``.

    ``code`` is the frame behind its code. Answer: None, whatever the code makes of it.
    """

    code: int
    asid: int
    offset: int
    length: int


OwnerOperation = AskOwner | OpenSession | ShowMeasurement | ReadInjected
