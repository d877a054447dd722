"""Why a VM of some generations cannot be moved while it runs, as its host says it.

Live migration copies memory while the guest writes. Where the host sees only
ciphertext bound to its own addresses and keys, somebody who may see plaintext
has to take part (spec: SEV API 0.24 chapter 3, SNP firmware ABI, migration agent).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from node.generation import Generation


class MigrationRefusal(StrEnum):
    """Typed reasons of a host that will not, or cannot, move a VM."""

    NO_SUCH_VM = "no such VM runs here"
    NOT_RUNNING = "the VM does not run"
    UNDER_WAY = "the VM is migrating already"
    ALREADY_THERE = "the VM is on that host"
    RECORD_FULL = "the control plane's record of hand-overs has no room for another"
    POLICY_FORBIDS_SENDING = "the guest's policy has NOSEND"
    POLICY_FORBIDS_TARGET = "the guest's policy does not want that platform: another owner, or too old an interface"
    TARGET_NOT_GENUINE = "the target's certificates do not lead where the guest's policy and firmware want them to"
    SHARED_PAGES_UNKNOWN = "the guest has not told which pages it shares"
    VCPU_IN_RESET = "a vCPU waits to be started by another"
    OTHER_GENERATION = "the target has no guests of that generation"
    OTHER_PRODUCT_LINE = "the target's chips are certified by another root"
    OTHER_C_BIT = "the C-bit is elsewhere at the target"
    CPU_FEATURES = "the target's processors do not have all features that the guest was shown"
    SEV_FEATURES = "the target's processors do not have all SEV_FEATURES that the guest runs with"
    LOWER_FIRMWARE = "the target's firmware is older than the source's"
    NEEDS_MIGRATION_AGENT = "an SNP guest moves only with a migration agent, and this one has none"
    NO_AGENT_THERE = "the target has no migration agent"
    AGENT_REFUSES = "the migration agents do not believe each other, or firmware does not do what one asks"
    HANDLER_REFUSES = "the migration handlers do not believe each other, or firmware does not do what one asks"
    SECURE_TSC = "firmware exports no guest whose clock begins with its host's"
    NETWORK_CARD = "the state of a paravirtual network card that is in use does not move yet"
    DEVICE_ASSIGNED = "devices of the host are assigned to the VM, and neither agents nor a handler may move it"
    DEVICES_KEPT = "the guest does not let its trusted devices go"

    @classmethod
    def of(cls, wrong: str) -> MigrationRefusal | None:
        """The reason that a host gives in a text, which may say more behind it; None for another text."""
        return next((one for one in cls if wrong.startswith(one)), None)


REFUSALS: Mapping[Generation, MigrationRefusal] = {
    Generation.SEV_SNP: MigrationRefusal.NEEDS_MIGRATION_AGENT,
    Generation.SEV_TIO: MigrationRefusal.NEEDS_MIGRATION_AGENT,
}
"""Generations that refuse; the others move."""
