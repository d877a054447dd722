"""What tenants know of devices before they see one: who makes them, and what a proper one measures.

Makers' roots and reference values come to a tenant from outside of the cloud, as a policy does, and so does the time:
the day after the laboratory's certificates were issued, as for all who judge them there.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from functools import cache

from node.device_policy import DevicePolicy
from psp.x509_profile import EPOCH
from tio.device_identity import CardKind, Firmware, device_identity, measured
from tio.spdm.measurement import ReferenceValue, ValueType

_TODAY = EPOCH + dt.timedelta(days=1)
MAKERS_SEED = 1
"""Of the laboratory's makers, who are the same for all scenarios."""
_REFERENCE = (
    ValueType.IMMUTABLE_ROM, ValueType.MUTABLE_FIRMWARE, ValueType.HARDWARE_CONFIGURATION,
    ValueType.FIRMWARE_CONFIGURATION, ValueType.DEVICE_MODE,
)  # fmt: skip
"""A device in debug mode is another than a proper one: its mode is measured, and as it is."""


@cache
def policy_for(kind: CardKind) -> DevicePolicy:
    """The policy of a tenant that wants a proper device of a kind, whichever it is."""
    proper = [one for one in measured(kind, Firmware()) if one.kind in _REFERENCE]
    references = tuple(
        [
            ReferenceValue(one.index, one.raw, raw=True)
            if one.kind is ValueType.DEVICE_MODE
            else ReferenceValue(one.index, hashlib.sha384(one.raw).digest())
            for one in proper
        ]
    )
    return DevicePolicy(kind, device_identity(kind, "reference", MAKERS_SEED).root, references, now=_TODAY)
