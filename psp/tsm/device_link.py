"""A device that is connected: the session with it, the streams that have keys, and what is asked inside of the session.

Keys of IDE are drawn here, given to the device inside of the session and to the root port with the directions turned
round; they are nowhere else. Source: ``spec/tio/tio-overview.md``, sections 3 and 6; ``ide.md``, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeVar

from psp.status import PspError, Status
from psp.tsm.status_records import DIGEST_BYTES
from psp.tsm.trusted_io import RootPortKeys
from tio.device_security_module import ProtocolId
from tio.ide.key_programmer import Keys, draw_keys, program_keys, start_keys, stop_keys
from tio.ide.keys import FIRST_INVOCATION, KEY_SETS, Direction
from tio.ide.stream import IdeError
from tio.ide.tlp import SubStream
from tio.spdm.algorithms import Aead, BaseAsym, BaseHash, DheGroup
from tio.spdm.binding import Packet
from tio.spdm.capabilities import Capability
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.spdm.faults import PeerUntrusted
from tio.spdm.requester import Requester
from tio.spdm.session import Session

T = TypeVar("T")
_DHE = {DheGroup.SECP_256_R1: 0, DheGroup.SECP_384_R1: 1}
_AEAD = {Aead.AES_128_GCM: 0, Aead.AES_256_GCM: 1}
_ASYM = {BaseAsym.RSASSA_3072: 0, BaseAsym.ECDSA_P256: 1, BaseAsym.ECDSA_P384: 2}
_HASH = {BaseHash.SHA_256: 0, BaseHash.SHA_384: 1}


@dataclass(slots=True)
class DeviceLink:
    """One connection. ``streams`` are stream ids by traffic class, ``ports`` the device's port index by stream id.

    ``broken``: the session is of no use any more; only a new connection or a forced end leads on.
    """

    requester: Requester
    session: Session
    slot: int
    root_port: RootPortKeys = field(repr=False)
    draw: Callable[[int], bytes] = field(repr=False)
    streams: dict[int, int] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    key_set: int = 0
    has_run: bool = False
    """Whether a TDI has run since its streams got the keys that they have."""
    broken: bool = False

    @property
    def tc_mask(self) -> int:
        """Traffic classes that have a stream."""
        return sum([1 << one for one in self.streams])

    @property
    def stream_id_bytes(self) -> bytes:
        """A byte for each traffic class."""
        return bytes([self.streams.get(one, 0) for one in range(8)])

    @property
    def algorithms(self) -> int:
        """What was negotiated, as TIO's records say it: group, cipher, signature, hash, a byte each."""
        chosen = self.requester.algorithms
        assert chosen.dhe is not None
        assert chosen.aead is not None
        assert chosen.asym is not None
        octets = (_DHE[chosen.dhe], _AEAD[chosen.aead], _ASYM[chosen.asym], _HASH[chosen.hash])
        return int.from_bytes(bytes(octets), "little")

    @property
    def measures_anew(self) -> bool:
        """Whether the device measures itself when it is asked, and not at its last reset."""
        return bool(self.requester.peer & Capability.MEAS_FRESH)

    def digest(self, data: bytes) -> bytes:
        """The digest of a blob, with the negotiated hash.

        That a shorter one is followed by zeros is a guess: records have room for SHA-384.
        """
        return self.requester.algorithms.hash.value.digest(data).ljust(DIGEST_BYTES, b"\0")

    # Inside of the session.

    def inside(self, protocol: ProtocolId, steps: Generator[bytes, bytes, T]) -> Generator[Packet, Packet, T]:
        """Carry steps of a protocol of PCI-SIG through the session. Raises what the steps and the session raise."""
        head = bytes((protocol,))
        try:
            asked = next(steps)
            while True:
                answer = yield from self.requester.vendor_defined(
                    head + asked, PCI_SIG_STANDARD, PCI_SIG_VENDOR, self.session
                )
                if answer[:1] != head:
                    raise PeerUntrusted(f"vendor-defined answer: expected protocol {protocol.name}")
                asked = steps.send(answer[1:])
        except StopIteration as end:
            returned: T = end.value
            return returned

    # Keys.

    def may_roll(self) -> bool:
        """Whether the other key set is out of use on every stream."""
        try:
            return all(self.root_port.is_free(one, 1 - self.key_set) for one in self.ports)
        except IdeError:
            return True  # Whoever took the stream away hears of it when it is to get keys.

    def give_keys(self, key_set: int) -> Generator[Packet, Packet, None]:
        """New keys for every stream, in a set, at both ends; nobody sends before the other end can open.

        They run when this ends. Raises PspError(INVALID_PARAM) for a stream that the root port has not set up.
        """
        for stream_id in sorted(self.ports):
            try:
                yield from self._give_stream(stream_id, key_set)
            except IdeError:
                raise PspError(Status.INVALID_PARAM) from None
        self.key_set = key_set

    def _give_stream(self, stream_id: int, key_set: int) -> Generator[Packet, Packet, None]:
        keys: Keys = draw_keys(self.draw)
        root = self.root_port
        for (way, sub), key in keys.items():
            root.program(stream_id, key_set, _other_end(way), sub, key, FIRST_INVOCATION)
        port = self.ports[stream_id]
        yield from self.inside(ProtocolId.IDE_KM, program_keys(port, stream_id, key_set, keys))
        for sub in SubStream:
            root.go(stream_id, key_set, Direction.RX, sub)
        yield from self.inside(ProtocolId.IDE_KM, start_keys(port, stream_id, key_set))
        for sub in SubStream:
            root.go(stream_id, key_set, Direction.TX, sub)

    def take_keys(self) -> Generator[Packet, Packet, None]:
        """Have the device stop its keys."""
        for stream_id in sorted(self.ports):
            steps = stop_keys(self.ports[stream_id], stream_id, self.key_set)
            yield from self.inside(ProtocolId.IDE_KM, steps)

    def stop_root_port(self) -> None:
        """The root port's end of every stream has no keys any more, of either set."""
        for stream_id in sorted(self.ports):
            for key_set in range(KEY_SETS):
                for way in Direction:
                    for sub in SubStream:
                        _stop(self.root_port, stream_id, key_set, way, sub)


def _other_end(way: Direction) -> Direction:
    return Direction.TX if way is Direction.RX else Direction.RX


def _stop(root_port: RootPortKeys, stream_id: int, key_set: int, way: Direction, sub: SubStream) -> None:
    try:
        root_port.stop(stream_id, key_set, way, sub)
    except IdeError:
        return  # A stream that its host has taken away has no keys.
