"""What TIO_DEV_CONNECT asks: a session with the device, who it is, what it runs, and keys for its streams.

Whether real firmware challenges the device first is not known; the signature in KEY_EXCHANGE_RSP proves as much.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from psp.status import PspError, Status
from psp.tsm.device_link import DeviceLink
from psp.tsm.device_port import find_ports
from psp.tsm.spdm_loop import MAILBOX, TRANSFER_BYTES
from psp.tsm.trusted_io import RootPortKeys
from tio.device_security_module import ProtocolId
from tio.spdm.binding import Packet
from tio.spdm.capabilities import Capability
from tio.spdm.device_personality import SEV_TIO_OFFER
from tio.spdm.faults import PeerUntrusted
from tio.spdm.requester import Requester, RequesterSettings

MOST_MESSAGE_BYTES = 32 << 10
"""What comes in chunks, from devices that make them: long measurements."""
SETTINGS = RequesterSettings(
    capabilities=RequesterSettings().capabilities | Capability.CHUNK,
    offer=SEV_TIO_OFFER,
    data_transfer_bytes=TRANSFER_BYTES,
    max_message_bytes=MOST_MESSAGE_BYTES,
    wants_encryption=True,
)
"""Without encryption the keys of streams would cross in the clear, by whoever carries the session."""


@dataclass(frozen=True, slots=True)
class Found:
    """A device that was connected, and the digests of its chain and of what it measured."""

    link: DeviceLink
    certificates_digest: bytes
    measurements_digest: bytes


def connect(
    draw: Callable[[int], bytes],
    root_port: RootPortKeys,
    slot: int,
    streams: Mapping[int, int],
    known_digest: bytes,
    *,
    wants_encryption: bool = True,
) -> Generator[Packet, Packet, Found]:
    """The steps. ``streams`` are stream ids by traffic class, ``known_digest`` the chain's of before, if there was one.

    ``wants_encryption`` is ``DeviceSwitches``'.
    Raises PspError: INVALID_PARAM for an empty slot, DEV_CERT_CHANGED for another chain; and what the steps raise.
    """
    requester = Requester(replace(SETTINGS, wants_encryption=wants_encryption), MAILBOX, draw)
    yield from requester.connect()
    digests = yield from requester.digests()
    if slot not in digests:
        raise PspError(Status.INVALID_PARAM)
    chain = yield from requester.certificates(slot)
    algorithm = requester.algorithms.hash.value
    if algorithm.digest(chain.raw) != digests[slot]:
        raise PeerUntrusted(f"CERTIFICATE: expected the chain of slot {slot} whose digest was told")
    session = yield from requester.open_session(slot)
    link = DeviceLink(requester, session, slot, root_port, draw)
    certificates_digest = link.digest(chain.raw)
    if known_digest not in (b"", certificates_digest):
        raise PspError(Status.DEV_CERT_CHANGED)
    yield from requester.measurements(slot=slot, session=session)
    measurements_digest = link.digest(requester.evidence)
    ports = yield from link.inside(ProtocolId.IDE_KM, find_ports(frozenset(streams.values())))
    link.streams, link.ports = dict(streams), ports
    try:
        yield from link.give_keys(0)
    except BaseException:  # Also where the steps are thrown away.
        link.stop_root_port()
        raise
    return Found(link, certificates_digest, measurements_digest)
