"""Updates of a host's firmware as its operator orders them, and the books of what came of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from node.firmware_driver import LEGACY_GUESTS, NO_MEMORY
from node.hypervisor_port import LaunchRefused, Reply
from psp.installed_firmware import FirmwareLevel
from psp.status import Status

if TYPE_CHECKING:
    from node.host import Host

_NOT_ASKED = {LEGACY_GUESTS: "SEV or SEV-ES guests are there", NO_MEMORY: "no memory for the image"}


class Action(StrEnum):
    """What the operator asks for."""

    UPDATE = "update"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class FirmwareEntry:
    """One order and what came of it. ``result`` is the firmware's status, or why it was not asked."""

    action: Action
    asked_ns: int
    ended_ns: int
    result: str
    current: FirmwareLevel
    committed: FirmwareLevel
    reported_tcb: int
    guests: int
    """VMs with a context in the firmware, over which this went."""


class FirmwareOperator:
    """Carries orders out on one host; ``entries`` are in the order in which they ended."""

    def __init__(self, host: Host) -> None:
        self.entries: list[FirmwareEntry] = []
        self._host = host

    def update(self, image: bytes, *, commit: bool) -> None:
        """Bring firmware from an image."""
        self._carry_out(Action.UPDATE, self._host.hypervisor.update_firmware(image, commit))

    def commit(self) -> None:
        """Commit the firmware that runs."""
        self._carry_out(Action.COMMIT, self._host.hypervisor.commit_firmware())

    def _carry_out(self, action: Action, task: Reply) -> None:
        host, asked_ns = self._host, self._host.now_ns
        store, reported = host.certificates, host.board.psp.firmware.reported_tcb
        if store is not None:
            store.ordered()

        def over(status: object) -> None:
            assert isinstance(status, int)
            end(_NOT_ASKED.get(status) or Status(status).name)

        def failed(refusal: LaunchRefused) -> None:
            end(str(refusal))

        def end(result: str) -> None:
            if store is not None:
                store.carried_out(other_tcb=host.board.psp.firmware.reported_tcb != reported)
            self._enter(action, asked_ns, result)

        host.tasks.run(task, None, over, failed)
        host.clock.settle()

    def _enter(self, action: Action, asked_ns: int, result: str) -> None:
        host = self._host
        psp = host.board.psp
        firmware = psp.firmware
        self.entries.append(
            FirmwareEntry(
                action, asked_ns, host.now_ns, result, firmware.current, firmware.committed, firmware.reported_tcb,
                len(psp.snp.guests.pages.spas),
            )
        )  # fmt: skip
        host.note_firmware(f"{action}: {result}")
