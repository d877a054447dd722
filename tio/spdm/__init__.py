"""SPDM 1.2 and 1.3, both sides, sans I/O: who a device is, what it runs, and sessions with it (DSP0274, DSP0277).

What is here
    Algorithms and capabilities as tables (``algorithms``, ``capabilities``, ``negotiation``), message formats
    (``message_layout``, ``connection_messages``, ``identity_messages``, ``session_messages``), what signatures and keys
    cover (``transcript``, ``key_schedule``, ``signing``, ``key_agreement``), records (``secured_message``), chains
    (``certificate_chain``), chunks (``chunking``), how transports carry it (``binding``); then a responder
    (``responder``) with its device (``device_personality``), and a requester (``requester``).

Who is trusted here
    Nobody: whoever carries messages may be an attacker, and each side takes the other for one until it has proved
    itself.
"""

from __future__ import annotations

from tio.spdm.binding import MCTP, PCI_DOE, TCP, Binding, Packet, Transport
from tio.spdm.capabilities import Capability
from tio.spdm.certificate_chain import TrustAnchors
from tio.spdm.codes import ErrorCode, KeyUpdateOperation, Request, SummaryType, Version
from tio.spdm.device_personality import SEV_TIO_OFFER, CertificateSlot, Personality, ResponderSettings
from tio.spdm.faults import MalformedMessage, PeerRefused, PeerUntrusted, RecordRejected, SpdmFault
from tio.spdm.measurement import Measurement, MeasurementBlock, ValueType
from tio.spdm.negotiation import Negotiated, Offer
from tio.spdm.requester import Requester, RequesterSettings
from tio.spdm.responder import Responder

__all__ = [
    "MCTP",
    "PCI_DOE",
    "SEV_TIO_OFFER",
    "TCP",
    "Binding",
    "Capability",
    "CertificateSlot",
    "ErrorCode",
    "KeyUpdateOperation",
    "MalformedMessage",
    "Measurement",
    "MeasurementBlock",
    "Negotiated",
    "Offer",
    "Packet",
    "PeerRefused",
    "PeerUntrusted",
    "Personality",
    "RecordRejected",
    "Request",
    "Requester",
    "RequesterSettings",
    "Responder",
    "ResponderSettings",
    "SpdmFault",
    "SummaryType",
    "Transport",
    "TrustAnchors",
    "ValueType",
    "Version",
]
