"""A hypervisor's own SPDM session with a device, beside that of the firmware.

It carried the firmware's first messages, which are in the clear; so it goes on where those ended, agrees on keys of its
own with the device, which asks nobody who he is, and is heard as whoever holds a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import TypeVar

from node.doe_driver import DoeDriver
from node.hypervisor_port import Answers, Batch, Task
from node.operations import Answer, ConfigIn, ConfigOut
from psp.tsm.connecting import SETTINGS
from tio.device_security_module import ProtocolId
from tio.doe import PCI_SIG, DataObject, ObjectType
from tio.spdm import PCI_DOE, Packet, Requester
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.spdm.session import Session
from workloads.attacks.target import AttackBatch, Target

T = TypeVar("T")
Steps = Generator[AttackBatch, tuple[Answer, ...], T]
_TYPES = {False: ObjectType.CMA_SPDM, True: ObjectType.SECURED_CMA_SPDM}


def carried(task: Task, answers: list[bytes], objects: list[bytes] | None = None) -> Steps[None]:
    """Do a task of the hypervisor's, and keep what devices' mailboxes answer in it: payloads, as they were read.

    ``objects`` gets the data objects that were brought to them, whole.
    """
    got: Answers | None = None
    body = False
    while True:
        try:
            batch: Batch = task.send(got)  # type: ignore[arg-type]  # None begins it
        except StopIteration:
            return
        got = yield batch
        for one, answer in zip(batch, got, strict=True):
            if isinstance(one, ConfigOut):
                body = False
                if objects is not None:
                    objects.append(one.data)
            elif isinstance(one, ConfigIn) and isinstance(answer, bytes):
                if body:
                    answers.append(answer)
                body = not body


class OwnSession:
    """One, with the device that the victim was given. ``heard`` are answers of the firmware's connection."""

    def __init__(self, target: Target, heard: list[bytes]) -> None:
        function = target.device.function
        self._mailbox = DoeDriver(function.requester, function.mailbox)
        self._requester = Requester(SETTINGS, PCI_DOE, _Draw())
        self._heard = heard
        self._session: Session | None = None

    def open(self) -> Steps[None]:
        """Join the connection, or make one where nothing was heard, and agree on keys. Raises as the requester."""
        if self._heard:
            _recall(self._requester.connect(), self._heard)
        else:
            yield from self._brought(self._requester.connect())
        yield from self._brought(self._requester.digests())
        yield from self._brought(self._requester.certificates())
        self._session = yield from self._brought(self._requester.open_session())

    def ask(self, protocol: ProtocolId, steps: Generator[bytes, bytes, T]) -> Steps[T]:
        """Carry out steps of a protocol of PCI-SIG's in it. Raises what they raise."""
        answer: bytes | None = None
        while True:
            try:
                asked = steps.send(answer)  # type: ignore[arg-type]  # None begins it
            except StopIteration as end:
                returned: T = end.value
                return returned
            whole = yield from self._brought(
                self._requester.vendor_defined(
                    bytes((protocol,)) + asked, PCI_SIG_STANDARD, PCI_SIG_VENDOR, self._session
                )
            )
            answer = whole[1:]

    def _brought(self, steps: Generator[Packet, Packet, T]) -> Steps[T]:
        answer: Packet | None = None
        while True:
            try:
                asked = steps.send(answer)  # type: ignore[arg-type]  # None begins it
            except StopIteration as end:
                returned: T = end.value
                return returned
            found = yield from self._mailbox.exchange(DataObject(PCI_SIG, _TYPES[asked.secured], asked.payload))
            answer = Packet(found.payload, secured=found.object_type == ObjectType.SECURED_CMA_SPDM)


def _recall(steps: Generator[Packet, Packet, None], heard: list[bytes]) -> None:
    """Take the answers that the firmware got for the same questions."""
    answers = iter(heard)
    try:
        next(steps)
        while True:
            steps.send(Packet(next(answers)))
    except StopIteration:
        return


class _Draw:
    """Random bytes of an attacker who is the same each time."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, length: int) -> bytes:
        self._number += 1
        return hashlib.shake_128(f"attacker's session {self._number}".encode()).digest(length)
