"""PCIe IDE: integrity and data encryption of packets between two ports.

What is here
    Packets (``tlp``) and the prefix that protects them (``prefix``), keys and GCM invocations (``keys``), one port's
    end of a selective stream (``stream``), many writes or completions in one go (``write_run``,
    ``completion_run``), a port with its associations
    (``port``), requests for any bytes and who waits for their completions (``requests``, ``waiting``), the link between
    two ports and who may sit on it (``link``), what protection adds on the wire (``wire_bytes``), and the messages that
    program keys (``key_messages``, ``key_responder``).

Who is trusted here
    Whoever holds the keys. What arrives from the link is an attacker's: it passes its checks or ends the stream.
"""

from __future__ import annotations

from tio.ide.key_messages import KeyMessage, KeyStatus, ObjectId
from tio.ide.key_responder import KeyResponder, PortRegisters
from tio.ide.keys import Direction
from tio.ide.link import Link, Packet, Run, Way
from tio.ide.port import Arrived, ArrivedCompletions, ArrivedWrites, Association, IdePort, Taken
from tio.ide.stream import Failure, IdeError, IdeStream, IdeTlp, StreamChecks, StreamSettings, StreamState
from tio.ide.tlp import CompletionStatus, SubStream, Tlp, TlpError, TlpKind, completion, memory_read, memory_write
from tio.ide.waiting import Outcome, Waiting, WaitingRequests
from tio.ide.wire_bytes import WireFormat
from tio.ide.write_run import WriteRun, receive_writes, send_writes

__all__ = [
    "Arrived",
    "ArrivedCompletions",
    "ArrivedWrites",
    "Association",
    "CompletionStatus",
    "Direction",
    "Failure",
    "IdeError",
    "IdePort",
    "IdeStream",
    "IdeTlp",
    "KeyMessage",
    "KeyResponder",
    "KeyStatus",
    "Link",
    "ObjectId",
    "Outcome",
    "Packet",
    "PortRegisters",
    "Run",
    "StreamChecks",
    "StreamSettings",
    "StreamState",
    "SubStream",
    "Taken",
    "Tlp",
    "TlpError",
    "TlpKind",
    "Waiting",
    "WaitingRequests",
    "Way",
    "WireFormat",
    "WriteRun",
    "completion",
    "memory_read",
    "memory_write",
    "receive_writes",
    "send_writes",
]
