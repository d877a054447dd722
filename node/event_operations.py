"""Operations about events: what a guest sets up to take them, and what a hypervisor stores to inject them.

They are handed on by ``node.operations``, beside all others.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of a guest's vCPU.


@dataclass(frozen=True, slots=True)
class LoadIdt:
    """LIDT: where the table of gates lies, by virtual address, and its last byte. Answer: None, or a Fault."""

    base: int
    limit: int


@dataclass(frozen=True, slots=True)
class ReadFlags:
    """PUSHF. Answer: RFLAGS, or a Fault."""


@dataclass(frozen=True, slots=True)
class WriteFlags:
    """POPF at CPL 0, with which CLI, STI and the end of a handler set RFLAGS. Answer: None, or a Fault."""

    value: int


@dataclass(frozen=True, slots=True)
class SoftwareInterrupt:
    """INT n: after this block its handler runs. Answer: None, or a Fault (#GP) for no vector."""

    vector: int


# Of the hypervisor.


@dataclass(frozen=True, slots=True)
class VmcbLoad:
    """Load a field of a vCPU's control block, by a name of ``node.vmcb_fields``. Answer: int, or a Fault.

    #UD where there is no such block or field.
    """

    vm: str
    vcpu: int
    field: str


@dataclass(frozen=True, slots=True)
class VmcbStore:
    """Store a field of a vCPU's control block; VMRUN looks at it. Answer: None, or a Fault as for ``VmcbLoad``.

    #GP for a value that is wider than the field.
    """

    vm: str
    vcpu: int
    field: str
    value: int


@dataclass(frozen=True, slots=True)
class VmKick:
    """Make a vCPU exit, with an interrupt to its hardware thread, and enter it anew as its control block says.

    Answer: 0, or the exit code of that VMRUN, after which the vCPU stays out until it is kicked again.
    """

    vm: str
    vcpu: int


@dataclass(frozen=True, slots=True)
class TraceFaults:
    """Take nested faults of a VM as exits, or not any more. Answer: None.

    A vCPU that has one is out then, with EXITCODE, EXITINFO1 and EXITINFO2 in its control block, and tries again when
    it is kicked. Otherwise a nested fault is the answer to its operation, and nobody else learns of it.
    """

    vm: str
    on: bool
