"""Events as EVENTINJ and EXITINTINFO hold them, and which of them VMRUN takes.

Source: APM volume 2, 15.20, as Linux quotes it where it checks nested control blocks (arch/x86/kvm/svm/nested.c):
VMRUN ends in VMEXIT_INVALID for a reserved type, and for an exception with a vector that none has. Linux found that
hardware counts reserved vectors among these, and vector 9 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class EventType(IntEnum):
    """Bits 10:8."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4


class ExceptionVector(IntEnum):
    """Vectors of exceptions (APM volume 2, table 8-1)."""

    DE = 0
    DB = 1
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XF = 19
    CP = 21
    HV = 28
    """Only a hypervisor raises it, and only in a guest with restricted injection."""
    VC = 29
    SX = 30


NMI_VECTOR = 2
VALID = 1 << 31
_ERROR_VALID = 1 << 11
_TYPES = frozenset(EventType)
_EXCEPTIONS = frozenset(ExceptionVector)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: vector 7:0, type 10:8, whether it has an error code 11, error code 63:32."""

    vector: int
    kind: int
    error: int | None = None

    @classmethod
    def of(cls, field: int) -> Self | None:
        """What a field holds; None where its valid bit is clear. Reserved bits mean nothing."""
        if not field & VALID:
            return None
        return cls(field & 0xFF, field >> 8 & 7, field >> 32 & 0xFFFF_FFFF if field & _ERROR_VALID else None)

    @property
    def field(self) -> int:
        """As EVENTINJ holds it."""
        error = 0 if self.error is None else _ERROR_VALID | self.error << 32
        return VALID | error | self.kind << 8 | self.vector

    @property
    def legal(self) -> bool:
        """Whether there is such an event at all."""
        return self.kind in _TYPES and (self.kind != EventType.EXCEPTION or self.vector in _EXCEPTIONS)

    @property
    def doorbell(self) -> bool:
        """Whether it is #HV."""
        return self.kind == EventType.EXCEPTION and self.vector == ExceptionVector.HV


def exception(vector: int, error: int | None = None) -> Event:
    """An exception."""
    return Event(vector, EventType.EXCEPTION, error)


# The field V_INTR, and VINTR_CTRL of a save area.


@dataclass(frozen=True, slots=True)
class VirtualInterrupt:
    """An interrupt that the processor takes when the guest lets it: V_INTR (offset 060; APM volume 2, 15.21.4)."""

    vector: int
    priority: int
    ignores_tpr: bool
    tpr: int

    @property
    def above_tpr(self) -> bool:
        """Whether the task priority lets it through."""
        return self.ignores_tpr or self.priority > self.tpr & 0xF


V_IRQ = 1 << 8
V_TPR = 0xFF
_V_IGN_TPR = 1 << 20


def virtual_interrupt(field: int) -> VirtualInterrupt | None:
    """The interrupt that V_INTR or VINTR_CTRL holds; None while V_IRQ is clear."""
    if not field & V_IRQ:
        return None
    return VirtualInterrupt(field >> 32 & 0xFF, field >> 16 & 0xF, bool(field & _V_IGN_TPR), field & V_TPR)


def virtual_interrupt_field(vector: int, tpr: int = 0) -> int:
    """V_INTR of an interrupt with the priority of its vector."""
    return vector << 32 | vector >> 4 << 16 | V_IRQ | tpr
