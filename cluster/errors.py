"""What can go wrong for a user of sevfleet, and the exit code of each.

    SevfleetError                 one line for a person
    |-- UserError                 the user asked for something that cannot be: exit code 2, nothing was written
    |   |-- ScenarioError         cluster/scenario.py: a scenario file names its file, field and expectation
    |   `-- ResultsError          cluster/results.py: a folder that is not, or must not become, results
    `-- ToolError                 the tool or its machine failed: exit code 1
        `-- RunFailedError        a run ended early; carries what is known of it

Lower floors raise errors of their own for what a user handed them; the command
line treats ``user_errors()`` alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.results import Results


class SevfleetError(Exception):
    """One line for a person."""


class UserError(SevfleetError):
    """What a user can cause and can put right; ``file: field: expected ..., got ...``."""


class ToolError(SevfleetError):
    """sevfleet or the machine under it failed: a lost worker, a full disk, a port in use."""


class RunFailedError(ToolError):
    """A run ended before its time; ``partial`` holds the results up to there, if there are any."""

    def __init__(self, message: str, partial: Results | None = None) -> None:
        super().__init__(message)
        self.partial = partial


def user_errors() -> tuple[type[Exception], ...]:
    """Every error that a user can cause, on any floor.

    Imported late: only a failure needs them, and the trace loader is heavy.
    """
    from node.cost_table import CostTableError  # noqa: PLC0415
    from node.ovmf import FirmwareImageError  # noqa: PLC0415
    from workloads.library import WorkloadParameterError  # noqa: PLC0415
    from workloads.trace import TraceError  # noqa: PLC0415

    return UserError, CostTableError, FirmwareImageError, TraceError, WorkloadParameterError
