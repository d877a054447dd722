"""What SNP guest policies are held against on one platform, as it is at the time."""

from __future__ import annotations

from psp.asid_ranges import AsidRanges
from psp.guest_context import MEMORY_KEY_BYTES
from psp.installed_firmware import InstalledFirmware
from psp.policy import PlatformFacts, check_snp_policy
from psp.system_bus import SystemBus


class SnpPolicyCheck:
    """For guests that are launched, and those that come from elsewhere."""

    def __init__(self, bus: SystemBus, ranges: AsidRanges, firmware: InstalledFirmware) -> None:
        self._bus = bus
        self._ranges = ranges
        self._firmware = firmware

    def check(self, policy: int) -> None:
        """Raise PspError(POLICY_FAILURE) if the platform cannot meet a policy."""
        bus = self._bus
        facts = PlatformFacts(
            self._firmware.current.version[:2],
            bus.core_configuration().smt_enabled,
            ciphertext_hidden=bool(self._ranges.max_snp_asid),
            aes_256_xts=bus.memory_key_bytes == MEMORY_KEY_BYTES,
            power_readings_disabled=bus.power_readings_disabled,
        )
        check_snp_policy(policy, facts)
