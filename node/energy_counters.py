"""Energy that cores have used, as their RAPL counters tell the host (PwrLeak, DIMVA 2023, CVE-2023-20575).

An instruction takes more of it the more bits of its operand are set: that is what the counters give away. They count
what programs here cause, ``Arithmetic`` alone. MSRs are those of AMD's processor programming references, recollected.
Firmware may switch readings off for all of the host (RAPL_DIS of SNP_INIT_EX); what they answer then is not published:
here zero.
"""

from __future__ import annotations

from dataclasses import dataclass

PWR_UNIT, CORE_ENERGY, PACKAGE_ENERGY = 0xC001_0299, 0xC001_029A, 0xC001_029B
ENERGY_MSRS = frozenset({PWR_UNIT, CORE_ENERGY, PACKAGE_ENERGY})
_ENERGY_STATUS_UNITS = 16
"""A counter's unit is 2 to the power of minus this, in joules."""
_UNITS = _ENERGY_STATUS_UNITS << 8
_COUNTER_BITS = 32
_PICO = 10**12


@dataclass(frozen=True, slots=True)
class EnergyParameters:
    """What an instruction takes. Nobody has published it of Zen: these are of the order of other parts of its time."""

    instruction_pj: int = 300
    set_bit_pj: int = 2


class EnergyCounters:
    """One counter of each core, and one of all."""

    def __init__(self, threads_per_core: int, parameters: EnergyParameters = EnergyParameters()) -> None:
        self.disabled = False
        """Nobody is told; counting goes on."""
        self._threads_per_core = threads_per_core
        self._parameters = parameters
        self._used_pj: dict[int, int] = {}

    def use(self, thread: int, operand: int, times: int) -> None:
        """A thread executes an instruction so many times with one operand."""
        one = self._parameters.instruction_pj + operand.bit_count() * self._parameters.set_bit_pj
        core = thread // self._threads_per_core
        self._used_pj[core] = self._used_pj.get(core, 0) + one * times

    def read(self, thread: int, msr: int) -> int:
        """RDMSR of one of ``ENERGY_MSRS`` on a thread."""
        if msr == PWR_UNIT:
            return _UNITS
        if self.disabled:
            return 0
        core = thread // self._threads_per_core
        used_pj = self._used_pj.get(core, 0) if msr == CORE_ENERGY else sum(self._used_pj.values())
        return (used_pj << _ENERGY_STATUS_UNITS) // _PICO % (1 << _COUNTER_BITS)
