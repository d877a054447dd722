"""Model-specific registers of a host's cores that decide about SME and SNP (APM volume 2, 7.10, 15.30.4 and 15.36.2).

Every hardware thread has its own; almost always all hold the same, so what one core
has otherwise is kept beside what all have. A value that a register cannot take, or
not yet, is #GP and changes nothing on any core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from node.rmp import ProtectionFault
from psp.system_bus import RmpRegisters

State = dict[int, int]


class Msr(IntEnum):
    """Numbers."""

    SYSCFG = 0xC001_0010
    HWCR = 0xC001_0015
    VM_HSAVE_PA = 0xC001_0117
    RMP_BASE = 0xC001_0132
    RMP_END = 0xC001_0133
    RMP_CFG = 0xC001_0136
    DE_CFG = 0xC001_1029


MFDM = 1 << 19
"""SYSCFG.MtrrFixDramModEn."""
MEM_ENCRYPTION_MODE_EN = 1 << 23
SNP_EN = 1 << 24
VMPL_EN = 1 << 25
SMM_LOCK = 1 << 0
"""HWCR.SmmLock."""

INVD_WBINVD = 1 << 4
"""HWCR.INVDWBINVD: INVD writes back. The hypervisor may clear it."""
STACK_ENGINE_OFF = 1 << 19
"""DE_CFG, of all threads of a core: see ``node.stack_engine``."""

_SYSCFG_OTHERS = 0b1_1101 << 18
"""MtrrFixDramEn, MtrrVarDramEn, Tom2En, Tom2ForceMemTypeWB."""
_HWCR_OTHERS = 1 << 24 | 1 << 25 | 1 << 30 | 1 << 35
"""TscFreqSel, CpbDis, IRPerfEn, CpuidUserDis."""
_DE_CFG_OTHERS = 1 << 1 | 1 << 9
"""LFENCE waits, and the fix of Zenbleed: as Linux sets them."""
_RMP_GRANULE = (1 << 13) - 1
_RMP_CFG = 1 | 0x3F << 8
_PAGE = (1 << 12) - 1


class CoreMsrs:
    """The registers of all hardware threads, numbered from 0.

    ``snp`` and ``segmented`` say what the part has, ``reset`` what firmware leaves in
    the registers when it starts the hypervisor. MEM_ENCRYPTION_MODE_EN stays as
    firmware sets it: software that would change it gets #GP.
    """

    def __init__(
        self, threads: int, address_bits: int, reset: Mapping[int, int], *, snp: bool, segmented: bool
    ) -> None:
        self.threads = threads
        self._address = (1 << min(address_bits, 52)) - 1
        self._snp_bits = SNP_EN | VMPL_EN if snp else 0
        self._rules: dict[int, Callable[[State, int], int]] = {
            Msr.SYSCFG: self._syscfg,
            Msr.HWCR: self._hwcr,
            Msr.VM_HSAVE_PA: self._hsave_pa,
            Msr.DE_CFG: lambda _, value: _only(value, STACK_ENGINE_OFF | _DE_CFG_OTHERS),
        }
        if snp:
            self._rules |= {Msr.RMP_BASE: self._rmp_base, Msr.RMP_END: self._rmp_end}
        if snp and segmented:
            self._rules[Msr.RMP_CFG] = self._rmp_cfg
        self._common: State = {msr: reset.get(msr, 0) for msr in self._rules}
        self._own: dict[int, State] = {}
        """What single cores have otherwise."""

    def read(self, core: int, msr: int) -> int:
        """RDMSR. Raises ProtectionFault for a register or core that is not there."""
        self._check(core, msr)
        return self._state(core)[msr]

    def write(self, core: int | None, msr: int, value: int) -> None:
        """WRMSR on one core, or on every core for None. Raises ProtectionFault, with no core changed."""
        self._check(0 if core is None else core, msr)
        if not 0 <= value < 1 << 64:
            raise ProtectionFault
        rule = self._rules[msr]
        cores = sorted(self._own) if core is None else [core]
        after = {one: rule(self._state(one), value) for one in cores}
        if core is None:
            self._common[msr] = rule(self._common, value)
        for one, now in after.items():
            own = self._own.setdefault(one, {})
            own[msr] = now
            self._own[one] = {name: had for name, had in own.items() if had != self._common[name]}
            if not self._own[one]:
                del self._own[one]
        if len(self._own) == self.threads:
            # None has what all are said to have: let it be what the last one has.
            states = {one: self._state(one) for one in range(self.threads)}
            self._common = states[self.threads - 1]
            self._own = {one: own for one, own in states.items() if own != self._common}

    def values(self, msr: int) -> tuple[int, ...]:
        """What the cores have in a register, each value once; nothing for one that the part lacks."""
        if msr not in self._rules:
            return ()
        return tuple(dict.fromkeys(one[msr] for one in self._states()))

    def rmp_registers(self) -> tuple[RmpRegisters, ...]:
        """Each setting of the RMP's registers that any core has, once; none on a part without an RMP."""
        if Msr.RMP_BASE not in self._rules:
            return ()
        return tuple(
            dict.fromkeys(
                RmpRegisters(one[Msr.RMP_BASE], one[Msr.RMP_END], one.get(Msr.RMP_CFG, 0)) for one in self._states()
            )
        )

    def all_have(self, bits: int) -> bool:
        """Whether SYSCFG has these bits on every core."""
        return all(value & bits == bits for value in self.values(Msr.SYSCFG))

    def _states(self) -> list[State]:
        """What the cores hold: what most have, then each of the others."""
        return [self._common, *(self._state(core) for core in sorted(self._own))]

    def _state(self, core: int) -> State:
        own = self._own.get(core)
        return {**self._common, **own} if own else self._common

    def _check(self, core: int, msr: int) -> None:
        if not 0 <= core < self.threads or msr not in self._rules:
            raise ProtectionFault

    # For each register: its value after a store, or #GP.

    def _syscfg(self, state: State, value: int) -> int:
        before = state[Msr.SYSCFG]
        _only(value, MFDM | MEM_ENCRYPTION_MODE_EN | _SYSCFG_OTHERS | self._snp_bits)
        if (value ^ before) & MEM_ENCRYPTION_MODE_EN:
            raise ProtectionFault
        if value & ~before & SNP_EN and not before & MFDM:
            raise ProtectionFault
        # Once set they stay until reset.
        return value | before & self._snp_bits

    def _hwcr(self, state: State, value: int) -> int:
        _only(value, SMM_LOCK | INVD_WBINVD | _HWCR_OTHERS)
        return value | state[Msr.HWCR] & SMM_LOCK

    def _hsave_pa(self, _: State, value: int) -> int:
        return _only(value, self._address & ~_PAGE)

    def _rmp_base(self, state: State, value: int) -> int:
        return _unlocked(state, Msr.RMP_BASE, _only(value, self._address & ~_RMP_GRANULE))

    def _rmp_end(self, state: State, value: int) -> int:
        return _unlocked(state, Msr.RMP_END, _only(value, self._address) | _RMP_GRANULE)

    def _rmp_cfg(self, state: State, value: int) -> int:
        return _unlocked(state, Msr.RMP_CFG, _only(value, _RMP_CFG))


def _only(value: int, bits: int) -> int:
    """#GP for a reserved bit."""
    if value & ~bits:
        raise ProtectionFault
    return value


def _unlocked(state: State, msr: Msr, value: int) -> int:
    """SNP_EN locks the place of the RMP."""
    if state[Msr.SYSCFG] & SNP_EN and value != state[msr]:
        raise ProtectionFault
    return value
