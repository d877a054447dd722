"""Finds the first host with room without asking all before it: a tree of the most that any host below has left.

Each node holds the most free memory, the most free vCPUs and the most free ASIDs of each
kind among the hosts below it, and the generations that any of them runs. What a node
does not have, no host below it has; so whole ranges are passed over, and a host that has changed is
told to the nodes above it before the next search: both take time with the logarithm of the hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.asid_pool import ASID_KINDS
from node.generation import Generation
from node.guest import GuestSpec

if TYPE_CHECKING:
    from cluster.placement import HostAccount

_BITS = {generation: 1 << number for number, generation in enumerate(Generation)}
_NONE = -1.0
_NEAR = 4
"""How many hosts a search that begins anywhere asks before it asks the tree, which has to hear of all changes first."""


class HostIndex:
    """The accounts of hosts in their order."""

    def __init__(self, accounts: Sequence[HostAccount], firmware_bytes: int) -> None:
        self._accounts = accounts
        self._firmware_bytes = firmware_bytes
        self.changed: dict[str, None] = {}
        """Hosts that have more left than when somebody last searched, or less: whoever changes one enters it here."""
        self._numbers = {account.name: number for number, account in enumerate(accounts)}
        self._size = size = 1 << max(0, len(accounts) - 1).bit_length()
        self._bytes = [_NONE] * (2 * size)
        self._vcpus = [_NONE] * (2 * size)
        self._masks = [0] * (2 * size)
        kinds = sorted({kind for account in accounts for kind in account.free_asids}, key=lambda one: one.name)
        self._asids = {kind: [_NONE] * (2 * size) for kind in kinds}
        for number, account in enumerate(accounts):
            self._put(size + number, account)
        self._figures = (self._bytes, self._vcpus, *self._asids.values())
        for node in range(size - 1, 0, -1):
            self._masks[node] = self._masks[2 * node] | self._masks[2 * node + 1]
            self._gather(node)

    def _put(self, leaf: int, account: HostAccount) -> None:
        self._masks[leaf] = sum([_BITS[one] for one in account.generations])
        self._set(leaf, account)

    def _set(self, leaf: int, account: HostAccount) -> bool:
        """Take over what a host has left; whether that is other than it was."""
        free_bytes, free_vcpus = account.free_bytes, account.free_vcpus
        changed = self._bytes[leaf] != free_bytes or self._vcpus[leaf] != free_vcpus
        self._bytes[leaf], self._vcpus[leaf] = free_bytes, free_vcpus
        for kind, free in self._asids.items():
            # A host without such a pool gives as many as are wanted.
            left = float(account.free_asids.get(kind, 1 << 62))
            if free[leaf] != left:
                free[leaf], changed = left, True
        return changed

    def _gather(self, node: int) -> bool:
        """Take a node's figures from both below it; whether any of them changed."""
        left, right = 2 * node, 2 * node + 1
        changed = False
        for figures in self._figures:
            most, other = figures[left], figures[right]
            if other > most:
                most = other
            if figures[node] != most:
                figures[node], changed = most, True
        return changed

    def _catch_up(self) -> None:
        """Tell the nodes above hosts that have changed: only who searches wants to know."""
        for name in self.changed:
            number = self._numbers[name]
            node = self._size + number
            above = self._set(node, self._accounts[number])
            while above and node > 1:
                node //= 2
                above = self._gather(node)
        self.changed.clear()

    def first(
        self, guest: GuestSpec, begin: int, end: int, excluded: frozenset[str], but: HostAccount | None
    ) -> int | None:
        """The first host from ``begin`` to before ``end`` that takes a VM and is not excluded; None for none."""
        size, accounts = self._size, self._accounts
        tree = begin + _NEAR if begin else 1  # The first hosts of all are the first that are full.
        for number in range(begin, min(tree, end)):
            account = accounts[number]
            if account is not but and account.name not in excluded and account.takes(guest):
                return number
        if tree >= end:
            return None
        begin = tree
        if self.changed:
            self._catch_up()
        need_bytes, need_vcpus = guest.memory_bytes + self._firmware_bytes, guest.vcpus
        bit, asids = _BITS[guest.generation], self._asids.get(ASID_KINDS.get(guest.generation, guest.generation))
        free_bytes, free_vcpus, masks = self._bytes, self._vcpus, self._masks
        waiting = [(1, 0, size)]
        while waiting:
            node, low, high = waiting.pop()
            if low >= end or high <= begin or free_bytes[node] < need_bytes or free_vcpus[node] < need_vcpus:
                continue
            if not masks[node] & bit or (asids is not None and asids[node] <= 0):
                continue
            if node >= size:
                account = accounts[low]
                if account is not but and account.name not in excluded and account.takes(guest):
                    return low
                continue
            middle = (low + high) // 2
            waiting.append((2 * node + 1, middle, high))
            waiting.append((2 * node, low, middle))
        return None
