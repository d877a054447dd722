"""A worker for tests of how runs are given out: it counts who is at work, and dies where its order says so."""

import os
import signal
import time
from pathlib import Path

from cluster.sweeps.run import RunOrder, RunOutcome


class MortalWorker:
    """Takes an order's text as ``FOLDER DEATHS``: it is killed so often before the run gives an answer."""

    def run(self, order: RunOrder) -> RunOutcome:
        folder, deaths = order.text.rsplit(" ", 1)
        with Path(folder, order.label).open("a") as attempts:
            attempts.write(f"{os.getpid()}\n")
        if attempts_at(folder, order.label) <= int(deaths):
            os.kill(os.getpid(), signal.SIGKILL)
        busy = Path(folder, f"busy-{os.getpid()}")
        busy.touch()
        together = len(list(Path(folder).glob("busy-*")))
        time.sleep(0.2)
        busy.unlink()
        return RunOutcome(digest=str(together))


def attempts_at(folder: str, label: str) -> int:
    """How often a run was begun."""
    return len(Path(folder, label).read_text().splitlines())
