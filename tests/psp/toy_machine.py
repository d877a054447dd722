"""A toy machine for the security processor: DRAM and RMP as dictionaries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from psp.firmware import SecurityProcessor
from psp.system_bus import CoreConfiguration, RmpEntry

PAGE = 4096
MEMORY_BYTES = 1 << 24


@dataclass
class ToyBus:
    """Memory of 16 MiB; an encrypted page is its bytes XOR a pad of the key, so that tests can see through it."""

    max_asid: int = 8
    min_sev_asid: int = 5
    dram_bytes: int = MEMORY_BYTES
    octets: bytearray = field(default_factory=lambda: bytearray(MEMORY_BYTES))
    rmp: dict[int, RmpEntry] = field(default_factory=dict)
    keys: dict[int, bytes] = field(default_factory=dict)
    wbinvds: int = 0
    cores: CoreConfiguration = field(
        default_factory=lambda: CoreConfiguration(
            snp_enabled=True, mtrr_fix_dram_mod_enabled=True, hsave_pa_zero=True, smt_enabled=True
        )
    )

    def core_configuration(self) -> CoreConfiguration:
        return self.cores

    def read(self, spa: int, length: int) -> bytes:
        return bytes(self.octets[spa : spa + length])

    def write(self, spa: int, data: bytes) -> None:
        self.octets[spa : spa + len(data)] = data

    def _pad(self, asid: int, length: int) -> bytes:
        return hashlib.shake_128(self.keys[asid]).digest(length)

    def read_guest(self, spa: int, length: int, asid: int) -> bytes:
        return bytes(a ^ b for a, b in zip(self.read(spa, length), self._pad(asid, length), strict=True))

    def write_guest(self, spa: int, data: bytes, asid: int) -> None:
        self.write(spa, bytes(a ^ b for a, b in zip(data, self._pad(asid, len(data)), strict=True)))

    def install_key(self, asid: int, key: bytes) -> None:
        self.keys[asid] = key

    def remove_key(self, asid: int) -> None:
        self.keys.pop(asid, None)

    def wbinvd_count(self) -> int:
        return self.wbinvds

    def rmp_covers(self, spa: int) -> bool:
        return 0 <= spa < self.dram_bytes

    def rmp_initialise(self) -> None:
        self.rmp.clear()

    def rmp_entry(self, spa: int) -> RmpEntry:
        return self.rmp.get(spa // PAGE, RmpEntry())

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        self.rmp[spa // PAGE] = entry

    def rmp_pages_of_asid(self, asid: int) -> int:
        return sum(entry.assigned and entry.asid == asid for entry in self.rmp.values())


@dataclass
class Machine:
    """A toy bus, the processor on it, and a driver's habits."""

    bus: ToyBus
    psp: SecurityProcessor

    def call(self, command: int, buffer: bytes = b"", spa: int = 0x1000) -> int:
        """Lay a buffer and ring the mailbox."""
        self.bus.write(spa, buffer)
        return int(self.psp.submit(command, spa))

    def flush(self, command: int) -> None:
        """WBINVD, then DF_FLUSH of one interface."""
        self.bus.wbinvds += 1
        assert self.call(command) == 0

    def snapshot(self) -> object:
        """Everything that a refused command must leave alone."""
        legacy, snp = self.psp.legacy, self.psp.snp
        return (
            bytes(self.bus.octets), dict(self.bus.rmp), dict(self.bus.keys),
            repr(legacy.guests), legacy.state, [guest.digest.value for guest in legacy.guests.values()],
            repr(snp.guests), snp.state, [guest.digest.value for guest in snp.guests.values()],
        )  # fmt: skip


def new_machine() -> Machine:
    """A machine that has just been switched on."""
    bus = ToyBus()

    def octets(purpose: str, counter: int, length: int) -> bytes:
        return hashlib.shake_128(f"{purpose} {counter}".encode()).digest(length)

    return Machine(bus, SecurityProcessor(bus, octets))
