"""The hypervisor's tasks in virtual time: each batch is priced, waits for the security processor, and takes effect.

The mailbox is one server. A launch under way promises that nothing will be said
of it before what is left of it is served, behind what is queued already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, TypeVar

from node import operations as op
from node.board import Board
from node.clock import Clock
from node.event_log import Chain
from node.guest import Guest, GuestState
from node.host_events import HostEvent
from node.hypervisor_port import LaunchRefused
from node.mechanism import Mechanism
from node.neighbour_ledger import BLOCKS, HOST, NeighbourLedger, Owner
from node.operation_cost import HostOperationCost
from node.psp_queue import PspQueue
from node.psp_streams import PspStreams
from node.service_line import ServiceLine

_Price = Callable[[tuple[op.HypervisorOperation, ...]], float]
PAGES = "pages"
"""The phase of waits of a migration's pages, which are nobody's vCPU time."""
COPY = "copy of "
"""How the name of a row of a VM's pages begins: a promise of it is not the VM's own."""

HypervisorTask = Generator[tuple[op.HypervisorOperation, ...], tuple[op.Answer, ...], object]


class _UnderWay(NamedTuple):
    """A task that runs or waits for its turn, whom it is for, and who hears what becomes of it."""

    task: HypervisorTask
    guest: Guest | None
    done: Callable[[object], None]
    refused: Callable[[LaunchRefused], None] | None
    price: _Price


About = TypeVar("About")


class KnownTask(Generic[About]):
    """A task of one batch for a guest, of which is known what it comes to: an event of the clock's, its time's end.

    ``effect`` does that and returns the task's result. Where it comes to None ``task`` is to be run after all. Both
    take this record, in which ``about`` is what they need to know.
    """

    __slots__ = ("about", "callbacks", "done", "effect", "guest", "refused", "task")
    _ok = True
    callbacks: tuple[Callable[[KnownTask[Any]], None], ...]

    def __init__(
        self, guest: Guest, effect: Callable[[KnownTask[About]], object],
        task: Callable[[KnownTask[About]], HypervisorTask], about: About,
        done: Callable[[object], None], refused: Callable[[LaunchRefused], None] | None,
    ) -> None:  # fmt: skip
        self.guest = guest
        self.effect = effect
        self.task = task
        self.about = about
        self.done = done
        self.refused = refused


class HypervisorTasks:
    """Runs the generators of one host's hypervisor on its board."""

    def __init__(self, clock: Clock, board: Board, cost: HostOperationCost, chain: Chain) -> None:
        self.psp_queue = PspQueue()
        self.promises: dict[str, int] = {}
        """For each VM of which something will be said, the earliest time of that."""
        self.streams = PspStreams(clock, self.psp_queue, self.promises)
        """Pages of migrations at the security processor."""
        self.ledger: NeighbourLedger | None = None
        """Who costs whom, where somebody asks for it."""
        self._at_mailbox = ServiceLine()
        self.lines: dict[str, deque[_UnderWay] | None] = {}
        """Guests that have a task under way, and those that wait for it."""
        self._clock = clock
        self._board = board
        self._cost = cost
        self._chain = chain
        self._spends = (self._pass,)

    def at_once(self, task: HypervisorTask) -> object:
        """Run a task in no time, charged to nobody; its result. Raises what it raises."""
        answers: tuple[op.Answer, ...] | None = None
        try:
            while True:
                batch = task.send(answers)  # type: ignore[arg-type]
                answers = self._board.execute_host(batch)
        except StopIteration as end:
            return end.value

    def run(
        self,
        task: HypervisorTask,
        guest: Guest | None,
        done: Callable[[object], None],
        refused: Callable[[LaunchRefused], None] | None = None,
        *,
        paid: bool = False,
    ) -> None:
        """Run a task from now on; ``done`` gets its result. Without ``refused`` it must not be refused.

        ``guest`` is whom it is for, None for the host itself. A guest's tasks run one after another. What a ``paid``
        one does with pages that hold bytes costs nothing: a migration has accounted for all of its pages.
        """
        price = self._cost.price_of_work if paid else self._cost.price
        one = _UnderWay(task, guest, done, refused, price)
        if guest is not None:
            name = guest.spec.name
            if name in self.lines:
                line = self.lines[name] = self.lines[name] or deque()
                line.append(one)
                return
            self.lines[name] = None
        self._step(one, None)

    def spend(self, spent_ns: int, known: KnownTask[Any]) -> None:
        """Run a task that takes so long, for a guest that has none under way."""
        self.lines[known.guest.spec.name] = None
        if spent_ns > 0:
            known.callbacks = self._spends
            self._clock.plan(spent_ns, known)
        else:
            self._spent(known)

    def _pass(self, known: KnownTask[Any]) -> None:
        self._spent(known)
        if self._clock.unsettled:
            self._clock.settle()

    def _spent(self, known: KnownTask[Any]) -> None:
        guest = known.guest
        result = known.effect(known)
        if result is None:
            task = known.task(known)
            one = _UnderWay(task, guest, known.done, known.refused, self._cost.price_of_work)
            self._step(one, self._execute(task.send(None), guest))  # type: ignore[arg-type]  # it begins
            return
        known.done(result)
        name = guest.spec.name
        if self.lines[name]:
            self._next(guest)
        else:
            del self.lines[name]

    def _next(self, guest: Guest | None) -> None:
        """A guest's task is over: begin the one that waits for that."""
        if guest is None:
            return
        line = self.lines.pop(guest.spec.name)
        if line:
            self.lines[guest.spec.name] = line
            self._step(line.popleft(), None)

    def promise(self, guest: Guest, from_ns: int) -> None:
        """Nothing will be said of a launch before what is left of it is served."""
        name, promises = guest.spec.name, self.promises
        if guest.least_left_ns:
            from_ns = max(from_ns, self.psp_queue.free_ns) + guest.least_left_ns
        if name not in promises or promises[name] < from_ns:
            promises[name] = from_ns

    def when_due(self, guest: Guest, say: Callable[[], None]) -> None:
        """Call ``say`` now, or when the promise for this VM allows it; the promise is kept then."""
        name = guest.spec.name
        left_ns = self.promises[name] - self._clock.now_ns
        if left_ns <= 0:
            del self.promises[name]
            say()
            return

        def now() -> None:
            del self.promises[name]
            say()

        self._clock.after(left_ns, now)

    def copy(self, guest: Guest, command: int, pages: int, done: Callable[[], None]) -> None:
        """Have the security processor send or receive so many pages of a VM; one row at a time for each VM."""
        service_ns = round(self._cost.psp_service_ns(op.PspCommand(command)))
        now_ns, ahead = self._clock.now_ns, list[tuple[str, float]]()
        if self.ledger is not None:
            self.streams.blamed = self._blame
            ahead = self._at_mailbox.ahead(now_ns, now_ns, self.psp_queue.free_ns)

        def waited(ns: int) -> None:
            guest.psp_wait_ns += ns

        self.streams.start(f"{COPY}{guest.spec.name}", command, pages, service_ns, done, waited, ahead)

    def _blame(self, row: str, neighbour: str, ns: float) -> None:
        if self.ledger is not None:
            owner = Owner(row.removeprefix(COPY), PAGES)
            self.ledger.note_wait(owner, Mechanism.PSP_WAIT, ((neighbour.removeprefix(COPY), ns),))

    def uncopied(self, name: str) -> int:
        """Pages that it was told to send or receive, and is not through with."""
        return self.streams.left(f"{COPY}{name}")

    def stop_copying(self, name: str) -> None:
        """Break that off, if it is under way."""
        self.streams.stop(f"{COPY}{name}")

    def _step(self, one: _UnderWay, answers: tuple[op.Answer, ...] | None) -> None:
        now_ns = self._clock.now_ns
        while True:
            try:
                batch = one.task.send(answers)  # type: ignore[arg-type]
            except StopIteration as end:
                one.done(end.value)
                self._next(one.guest)
                return
            except LaunchRefused as refusal:
                if one.refused is None:
                    raise
                one.refused(refusal)
                self._next(one.guest)
                return
            phase = "" if one.guest is None or self.ledger is None else one.guest.state.value
            end_ns = self.served(batch, now_ns + round(one.price(batch)), one.guest, phase)
            if end_ns > now_ns:
                break
            answers = self._execute(batch, one.guest)  # What takes no time needs no event.

        def take_effect(_: object) -> None:
            self._step(one, self._execute(batch, one.guest))
            self._clock.settle()

        self._clock.wake(end_ns - now_ns, take_effect)

    def _execute(self, batch: tuple[op.HypervisorOperation, ...], guest: Guest | None) -> tuple[op.Answer, ...]:
        board = self._board
        if guest is not None and guest.spec.name in board.unlaid.vms:
            return board.unlaid.execute(guest.spec.name, batch)
        return board.execute_host(batch)

    def served(
        self, batch: tuple[op.HypervisorOperation, ...], ready_ns: int, guest: Guest | None, phase: str = BLOCKS
    ) -> int:
        """When a batch that is ready for the mailbox is through with it.

        ``guest`` is whom it is for, if anybody, and ``phase`` what it does meanwhile.
        """
        if op.PspCommand not in map(type, batch):
            return ready_ns
        commands = [one for one in batch if isinstance(one, op.PspCommand) and not one.paid]
        served = [(one.command, round(self._cost.psp_service_ns(one))) for one in commands]
        if not served:
            return ready_ns
        free_ns = self.psp_queue.free_ns
        end_ns, waited_ns = self.psp_queue.serve(ready_ns, served, self.streams.ahead_ns())
        service_ns = sum([ns for _, ns in served])
        if self.ledger is not None:
            self._attribute(self.ledger, guest, phase, (ready_ns, free_ns, end_ns))
        self.streams.served(end_ns - service_ns, end_ns, HOST if guest is None else guest.spec.name)
        if self._chain.keeps:
            self._note(served, end_ns - service_ns, waited_ns, "" if guest is None else guest.spec.name)
        if guest is None:
            return end_ns
        guest.psp_wait_ns += waited_ns
        guest.psp_service_ns += service_ns
        if phase == BLOCKS:  # Its vCPU waits for it.
            for command, ns in served:
                if row := self._cost.psp_row(command):
                    guest.row_ns[row] = guest.row_ns.get(row, 0.0) + ns
        if guest.spec.name in self.promises:
            guest.least_left_ns = max(0, guest.least_left_ns - service_ns)
            self.promise(guest, end_ns)
        return end_ns

    def _attribute(
        self, ledger: NeighbourLedger, guest: Guest | None, phase: str, times: tuple[int, int, int]
    ) -> None:
        """Book a batch's wait as the doing of those before it: (ready, when those were through, end of its own)."""
        ready_ns, free_ns, end_ns = times
        at_ns = max(ready_ns, free_ns)
        ahead = self._at_mailbox.ahead(self._clock.now_ns, ready_ns, at_ns)
        for row, ns in self.streams.ahead():
            vm, at_ns = row.removeprefix(COPY), at_ns + ns
            ahead.append((vm, float(ns)))
            self._at_mailbox.join(vm, at_ns)
        self._at_mailbox.join(HOST if guest is None else guest.spec.name, end_ns)
        # What is left of one that has departed is cleared away at nobody's cost.
        if guest is not None and guest.state is not GuestState.DEPARTED:
            ledger.note_wait(Owner(guest.spec.name, phase), Mechanism.PSP_WAIT, ahead)

    def _note(self, served: list[tuple[int, int]], start_ns: int, waited_ns: int, vm: str) -> None:
        for command, ns in served:
            start_ns += ns
            self._chain.note(start_ns, HostEvent.PSP_COMMAND, command, waited_ns, ns, about=vm)
            waited_ns = 0  # the batch waited once, before its first command
