"""What a hypervisor's task expects of its answers: anything else refuses the launch, and names what was answered."""

from __future__ import annotations

from collections.abc import Sequence

from node import operations as op
from node.hypervisor_port import Answers, LaunchRefused
from psp.commands import SnpCommand, command_name
from psp.status import Status


def expect_done(batch: Sequence[op.HypervisorOperation], answers: Answers) -> None:
    """Every operation was carried out: None or 0. Raises LaunchRefused."""
    for one, answer in zip(batch, answers, strict=True):
        if answer is not None and answer != 0:
            raise LaunchRefused(f"{type(one).__name__}: {answer!r}")


def is_success(answer: op.Answer) -> bool:
    """Whether the firmware says SUCCESS to a command."""
    return isinstance(answer, op.PspAnswer) and answer.status == Status.SUCCESS


def expect_success(answers: Answers, command: int) -> None:
    """The firmware says SUCCESS to every command. Raises LaunchRefused."""
    for answer in answers:
        if not isinstance(answer, op.PspAnswer):
            raise LaunchRefused(f"{command_name(command)}: {answer!r}")
        if answer.status != Status.SUCCESS:
            raise LaunchRefused(f"{command_name(command)}: {Status(answer.status).name}")


def expect_gone(answers: Answers) -> None:
    """SNP_DECOMMISSION leaves no guest, or there was none: one that exported itself has gone. Raises LaunchRefused."""
    if any(not isinstance(answer, op.PspAnswer) or answer.status != Status.INVALID_GUEST for answer in answers):
        expect_success(answers, SnpCommand.DECOMMISSION)


def octets(answers: Answers) -> tuple[bytes, ...]:
    """Every load brought bytes: these. Raises LaunchRefused."""
    for answer in answers:
        if not isinstance(answer, bytes):
            raise LaunchRefused(f"HostRead: {answer!r}")
    return answers  # type: ignore[return-value]  # all are bytes
