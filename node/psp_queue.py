"""The security processor as a server: one command at a time, first come, first served.

Linux holds one lock around the mailbox, so a batch of one launch is served
whole before another launch's next batch.
"""

from __future__ import annotations

from collections.abc import Iterable


class PspQueue:
    """Virtual times of the queue, and what it did so far by command."""

    def __init__(self) -> None:
        self.free_ns = 0
        self.busy_ns = 0
        self.waited_ns = 0
        self.longest_wait_ns = 0
        self.counts: dict[int, int] = {}
        self.service_ns: dict[int, int] = {}

    def serve(self, ready_ns: int, commands: Iterable[tuple[int, int]], ahead_ns: int = 0) -> tuple[int, int]:
        """Queue (command, service time) pairs that are ready at ``ready_ns``; returns (end, time waited).

        ``ahead_ns`` is what rows of page commands (``node.psp_streams``) have in the mailbox already.
        """
        start = max(ready_ns, self.free_ns) + ahead_ns
        end = start
        for command, service in commands:
            end += service
            self.counts[command] = self.counts.get(command, 0) + 1
            self.service_ns[command] = self.service_ns.get(command, 0) + service
        waited = start - ready_ns
        self.free_ns = end
        self.busy_ns += end - start
        self.waited_ns += waited
        self.longest_wait_ns = max(self.longest_wait_ns, waited)
        return end, waited

    def count(self, command: int, times: int, service_ns: int) -> None:
        """Book commands that were served between those of others."""
        self.counts[command] = self.counts.get(command, 0) + times
        self.service_ns[command] = self.service_ns.get(command, 0) + service_ns
        self.busy_ns += service_ns
