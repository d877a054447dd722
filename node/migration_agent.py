"""A migration agent: the code of an SNP guest that takes other guests' contexts from one firmware to another.

Two agents, one on each host, show each other an attestation report with a key of X25519 in it. Who shows no report of
a chip that AMD certified, with this agent's own measurement, under firmware that is not below its own, is given
nothing. A guest may come from older firmware, down to the floor that both agents were launched with: their HOST_DATA,
which their reports show. Whoever has the keys of old firmware may make a guest up, but none that was launched by newer:
an agent takes in no launch above the TCB that its peer's chip has proved. What they exchange is sealed for that peer
and that guest: the hypervisors carry it, and read nothing.

An agent tells a guest that moves itself while it runs (``node.migration_handler``) whose image it may believe, and
hands over that guest's identity alone: EXPORT of a guest that runs on, and ABSORB into the image that came up with the
peer.

From the first order on an agent's hypervisor says what it wants in msgpack; whatever it says may be a lie. For each
message to the firmware the agent seals a request with its VMPCK0, whose number it keeps in its secrets page, and asks
its hypervisor to carry it. An agent never moves. Sources: SNP firmware ABI, 7.5 to 7.9; what agents say to each other
no text defines, and this is the laboratory's. No product ships such an agent.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node.agent_messages import (
    KEY_BYTES,
    MARK,
    AgentRefusal,
    Asking,
    Carry,
    Hello,
    Voucher,
    ask_firmware,
    asked_report,
    believe,
    floor_of,
    fresh_key,
    tcb_floor,
)
from node.operations import GuestOperation
from psp.byte_layout import ByteLayout
from psp.exported_context import EXPORTED_BYTES, EXPORTED_VERSION, ExportedContext, launched_at_most
from psp.guest_message import MessageType
from psp.migration_messages import EXPORT_IMI_EN, ExportRequest, ExportResponse, ImportRequest, StatusResponse
from psp.status import Status
from psp.verifier import Expectations, Report
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report

__all__ = ["MARK", "AgentRefusal", "Carry", "Hello", "MigrationAgent"]

_LARGEST = 1 << 64
_WAYS: Mapping[str, MessageType] = {"import": MessageType.IMPORT_REQ, "absorb": MessageType.ABSORB_REQ}

Step = Generator[tuple[GuestOperation, ...] | Carry, object, object]


@dataclass(slots=True)
class MigrationAgent:
    """One agent. ``roots`` are the roots of chips that it trusts; ``now`` is when it looks at certificates, seconds.

    ``verifies_peer`` and ``keeps_ledger`` are what the attack matrix turns off and on (rows 55 and 58). Without a
    ledger an agent can take a guest back whose move failed, on its hypervisor's word alone, which may be a lie: there
    are two then. With one it takes nothing in twice and keeps no copy of what it has given away: a guest is never
    doubled, and one whose move fails after EXPORT is lost unless its peer sends it back. ``bounds_launch`` off takes a
    peer's word for the firmware that launched a guest, however old its own is.
    """

    secrets_gpa: int
    roots: Mapping[str, frozenset[str]]
    now: int
    verifies_peer: bool = True
    keeps_ledger: bool = False
    bounds_launch: bool = True
    _private: X25519PrivateKey | None = field(default=None, repr=False)
    _own: Report | None = field(default=None, repr=False)
    _peers: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The verified peer of each guest's move."""
    _kept: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Contexts that were exported and may have to come back: the move may fail."""
    _peer_ids: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Its report id."""
    _peer_tcbs: dict[str, bytes] = field(default_factory=dict, repr=False)
    """What its report says is reported: of which the key is that signed it, and so is all that it can prove."""
    _senders: set[str] = field(default_factory=set, repr=False)
    """Guests whose peer was looked at as one that they come from: it may be of older firmware, and is given nothing."""
    _imported: set[bytes] = field(default_factory=set, repr=False)

    def serve(self, order: bytes) -> Step:
        """One order; its result as a msgpack-able value. Raises AgentRefusal."""
        match _parsed(order):
            case ("hello",):
                return (yield from self._hello())
            case ("meet", str(vm), bytes(peer), bool(low)):
                return (yield from self._meet(vm, peer, low=low))
            case ("export" | "export live" as how, str(vm), int(gctx)) if 0 <= gctx < _LARGEST:
                return (yield from self._export(vm, gctx, live=how == "export live"))
            case ("import" | "absorb" as how, str(vm), int(gctx), bytes(sealed)) if 0 <= gctx < _LARGEST:
                return (yield from self._import(vm, gctx, sealed, _WAYS[how]))
            case ("vouch", str(vm), int(gctx), bytes(key)) if 0 <= gctx < _LARGEST and len(key) == KEY_BYTES:
                return (yield from self._vouch(vm, gctx, key))
            case ("take back", str(vm), int(gctx)) if 0 <= gctx < _LARGEST:
                return (yield from self._take_back(vm, gctx))
            case ("forget", str(vm)):
                self._kept.pop(vm, None)
                self._peers.pop(vm, None)
                self._peer_ids.pop(vm, None)
                self._peer_tcbs.pop(vm, None)
                self._senders.discard(vm)
                return None
        raise AgentRefusal("no such order")

    def _hello(self) -> Step:
        if self._private is None:
            # Another in each life: who begins anew, and with empty books, opens nothing that came before.
            self._private = X25519PrivateKey.from_private_bytes((yield from fresh_key()))
        hello = Hello(self._public(), b"")
        report = yield from self._report(hello.bound)
        self._own = parse_report(report, Trail())
        return Hello(hello.public_key, report).pack()

    def _report(self, data: bytes) -> Asking:
        return (yield from asked_report(self.secrets_gpa, data))

    def _meet(self, vm: str, peer: bytes, *, low: bool) -> Step:
        """Look at a peer, which a context may be exchanged with; ``low`` takes older firmware than one's own.

        Its hypervisor says which, and may lie: firmware below the agent's floor is taken in neither case.
        """
        hello = Hello.parse(peer)
        if self._own is None:
            yield from self._hello()
        assert self._own is not None
        self._peer_ids.pop(vm, None)
        self._peer_tcbs.pop(vm, None)
        if self.verifies_peer:
            own = self._own
            # Who has another floor may have taken guests in that this one would not.
            lowest, present = Counter(floor_of(own.host_data)), Counter({} if low else tcb_floor(own))
            expected = Expectations(
                measurement=own.measurement, host_data=own.host_data, report_data=hello.bound,
                min_tcb=lowest | present, min_launch_tcb=lowest,
            )  # fmt: skip
            believe(hello, expected, self.now, self.roots)
            report = parse_report(hello.report, Trail())
            self._peer_ids[vm], self._peer_tcbs[vm] = report.report_id, report.reported_tcb
        self._peers[vm] = hello.public_key
        (self._senders.add if low else self._senders.discard)(vm)
        return None

    def _vouch(self, vm: str, gctx: int, key: bytes) -> Step:
        """For a guest of its own whose handler has this key: which image is its own, and with which agent it may be."""
        if vm not in self._peer_ids or vm in self._senders:
            raise AgentRefusal("no peer was met for this guest")
        context = ExportedContext.parse((yield from self._exported(gctx, EXPORT_IMI_EN)))
        said = Voucher(context.imd, self._peer_ids[vm])
        report = yield from self._report(said.bound_to(context.report_id, key))
        return replace(said, report=report).pack()

    def _exported(self, gctx: int, flags: int = 0) -> Asking:
        answer = yield from self._ask(MessageType.EXPORT_REQ, ExportRequest(gctx, flags))
        head = ExportResponse.parse(answer)
        if head.status != Status.SUCCESS or head.exported_bytes != EXPORTED_BYTES:
            raise AgentRefusal(f"EXPORT: {Status(head.status).name}")
        return answer[ExportResponse.SIZE :]

    def _export(self, vm: str, gctx: int, *, live: bool) -> Step:
        """EXPORT: the guest is gone from this firmware then, unless it is to run on. Sealed for the peer."""
        if vm not in self._peers or vm in self._senders:
            raise AgentRefusal("no peer was met for this guest")
        blob = yield from self._exported(gctx, EXPORT_IMI_EN if live else 0)
        if not (self.keeps_ledger or live):
            self._kept[vm] = blob
        name = hashlib.sha256(blob).digest()
        return name + AESGCM(self._channel(vm, name)).encrypt(bytes(12), blob, vm.encode())

    def _import(self, vm: str, gctx: int, sealed: bytes, how: MessageType) -> Step:
        """IMPORT, or ABSORB, of what a peer sealed for this agent."""
        if vm not in self._peers:
            raise AgentRefusal("no peer was met for this guest")
        name = sealed[:KEY_BYTES]
        try:
            blob = AESGCM(self._channel(vm, name)).decrypt(bytes(12), sealed[KEY_BYTES:], vm.encode())
        except (InvalidTag, ValueError):
            raise AgentRefusal("what came is not sealed by the peer for this guest") from None
        if self.keeps_ledger and name in self._imported:
            raise AgentRefusal("this context was taken in already")
        if self.bounds_launch and vm in self._peer_tcbs:
            blob = launched_at_most(blob, self._peer_tcbs[vm])
        yield from self._taken_in(gctx, blob, how)
        self._imported.add(name)
        return None

    def _take_back(self, vm: str, gctx: int) -> Step:
        """IMPORT of what this agent exported, for a move that failed."""
        if vm not in self._kept:
            raise AgentRefusal("nothing of this guest is kept")
        yield from self._taken_in(gctx, self._kept[vm], MessageType.IMPORT_REQ)
        del self._kept[vm]
        return None

    def _taken_in(
        self, gctx: int, blob: bytes, how: MessageType
    ) -> Generator[tuple[GuestOperation, ...] | Carry, object, None]:
        asked = ImportRequest(gctx, EXPORTED_BYTES, EXPORTED_VERSION, blob)
        answer = yield from self._ask(how, asked)
        status = StatusResponse.parse(answer).status
        if status != Status.SUCCESS:
            raise AgentRefusal(f"{how.name.removesuffix('_REQ')}: {Status(status).name}")

    def _public(self) -> bytes:
        assert self._private is not None
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def _channel(self, vm: str, name: bytes) -> bytes:
        """The key of one context's way: another for each, so that its nonce need not change."""
        assert self._private is not None
        shared = self._private.exchange(X25519PublicKey.from_public_bytes(self._peers[vm]))
        return HKDF(SHA256(), KEY_BYTES, name, MARK + vm.encode()).derive(shared)

    def _ask(self, kind: MessageType, asked: ByteLayout, version: int = 1) -> Asking:
        return (yield from ask_firmware(self.secrets_gpa, kind, asked, version))


def _parsed(order: bytes) -> object:
    try:
        return msgpack.unpackb(order, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None
