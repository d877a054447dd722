"""What is said over the network, by whoever runs a platform and by code in guests that an attacker made.

A guest of an attacker's is too small to run: the laboratory acts for its code, by what that code is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Whoever runs a platform shows its certificates: PDH, then PEK, OCA and CEK in one.

    Answer: the owner's certificate, its session block, and the policy that it demands (4 bytes), or None.
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
class ShowAttestation:
    """Whoever runs a platform shows a SEV guest's attestation report for the owner's nonce, and the platform's chain.

    The owner takes it for that guest's. Answer: the secret, or None.
    """

    report: bytes
    pdh: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class ReadInjected:
    """The code of a SEV guest goes on, and reads what its owner sent it: ``length`` bytes at a frame's ``offset``.

    ``code`` is the frame behind its code. Answer: None, whatever the code makes of it.
    """

    code: int
    asid: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class GuestAsks:
    """The code of an SNP guest gets a nonce from the owner and asks for a report: a sealed request lies in a frame.

    ``code`` and ``secrets`` are the frames behind its code and its secrets page, ``request`` one that it
    shares. It asks from a VMPL, for that VMPL. Answer: None.
    """

    code: int
    secrets: int
    asid: int
    request: int
    vmpl: int = 0


@dataclass(frozen=True, slots=True)
class GuestShows:
    """The code of an SNP guest opens the firmware's response and shows the report to the owner.

    What the owner then sends is sealed for it. Answer: the report as it went over the network, or None.
    """

    code: int
    secrets: int
    asid: int
    response: int
    vmpl: int = 0


@dataclass(frozen=True, slots=True)
class AskNonce:
    """Somebody asks the owner for a nonce. Answer: 32 bytes, or 16 of a SEV guest's owner."""


@dataclass(frozen=True, slots=True)
class ShowReport:
    """Somebody shows the owner a report, and a public key to seal its secret for. Answer: the box, or None."""

    report: bytes
    channel_key: bytes


@dataclass(frozen=True, slots=True)
class AskForCertificates:
    """Somebody asks AMD's service for the certificates over a platform's: PDH, then PEK, OCA and CEK in one.

    Answer: the chain, with AMD's signature over its CEK where that is a chip's, and ASK and ARK behind it.
    """

    pdh: bytes
    chain: bytes


OwnerOperation = (
    OpenSession | ShowMeasurement | ShowAttestation | ReadInjected | AskForCertificates
    | GuestAsks | GuestShows | AskNonce | ShowReport
)  # fmt: skip
