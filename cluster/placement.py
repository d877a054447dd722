"""Where VMs go: first fit over the hosts in the scenario's order, from the first or from another on.

The control plane keeps its own account of what it promised: memory, vCPUs and
ASIDs. A VM holds its share until it is destroyed, also when it powered itself
off before, because nothing on a host reports that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.host_index import HostIndex
from cluster.platform_fit import lacks, unfit
from node.asid_pool import ASID_KINDS
from node.cpu_model import shown_by
from node.generation import Generation
from node.guest import GuestSpec
from node.migration_refusal import MigrationRefusal
from node.product import Product
from tio.device_identity import CardKind

FIRMWARE_BYTES = 16 << 20
"""Kept free on a host for each VM's firmware image and small pages, the largest image there is."""


_CHECKED = frozenset({Generation.SEV_SNP, Generation.SEV_TIO})


@dataclass(slots=True)
class HostAccount:
    """What is left of one host."""

    name: str
    generations: frozenset[Generation]
    free_bytes: int
    free_vcpus: float
    free_asids: dict[Generation, int]
    """By kind; see ``ASID_KINDS``."""
    free_cards: dict[CardKind, int] = field(default_factory=dict)
    backs_twice: float = 0.0
    """Of a SEV-SNP guest's memory, the share that the host holds a second time, as shared memory."""

    has_agent: bool = False
    """Whether it has a migration agent, without which no guest comes that is to have one."""
    product: Product | None = None
    """Its processors; None for any."""

    def needed_bytes(self, guest: GuestSpec) -> int:
        """What a guest takes of the host's memory."""
        if self.backs_twice and guest.generation in _CHECKED:
            return guest.memory_bytes + round(guest.memory_bytes * self.backs_twice) + FIRMWARE_BYTES
        return guest.memory_bytes + FIRMWARE_BYTES

    def takes(self, guest: GuestSpec) -> bool:
        """Whether the host has what the VM needs."""
        return (
            guest.generation in self.generations
            and (self.has_agent or not guest.migration_agent)
            and self.needed_bytes(guest) <= self.free_bytes
            and guest.vcpus <= self.free_vcpus
            and self.free_asids.get(ASID_KINDS.get(guest.generation, guest.generation), 1) > 0
            and (not guest.devices or self._has_cards(guest.devices))
            and (not (guest.cpu_model or guest.launched_on or guest.sev_features) or self._shows(guest))
        )

    def short_of(self, guest: GuestSpec) -> list[str]:
        """What the host has too little of for the VM."""
        lacking = {
            "memory": self.needed_bytes(guest) > self.free_bytes,
            "vCPUs": guest.vcpus > self.free_vcpus,
            "ASIDs": self.free_asids.get(ASID_KINDS.get(guest.generation, guest.generation), 1) <= 0,
            "cards": not self._has_cards(guest.devices),
        }
        return [what for what, is_lacking in lacking.items() if is_lacking]

    def unfit(self, guest: GuestSpec, target: HostAccount) -> MigrationRefusal | None:
        """Why a guest of this host's could not go to another, however much room it had; None for nothing."""
        if guest.generation not in target.generations:
            return MigrationRefusal.OTHER_GENERATION
        if guest.migration_agent and not target.has_agent:
            return MigrationRefusal.NO_AGENT_THERE
        return unfit(self.product, target.product, guest) if self.product and target.product else None

    def _shows(self, guest: GuestSpec) -> bool:
        return self.product is None or lacks(self.product, guest) is None

    def _has_cards(self, wanted: tuple[CardKind, ...]) -> bool:
        return all(wanted.count(kind) <= self.free_cards.get(kind, 0) for kind in wanted)

    def charge(self, guest: GuestSpec, sign: int) -> None:
        """Take (``sign`` 1) or give back (-1) a VM's share."""
        self.free_bytes -= sign * self.needed_bytes(guest)
        self.free_vcpus -= sign * guest.vcpus
        kind = ASID_KINDS.get(guest.generation)
        if kind is not None and kind in self.free_asids:
            self.free_asids[kind] -= sign
        for card in guest.devices:
            self.free_cards[card] -= sign


Place = tuple[HostAccount, GuestSpec]
"""Where a VM is, and what it is."""


@dataclass(slots=True)
class FirstFit:
    """The accounts of all hosts, and which VM sits where."""

    accounts: tuple[HostAccount, ...]
    _numbers: dict[str, int] = field(init=False)
    _index: HostIndex = field(init=False)
    _changed: dict[str, None] = field(init=False)
    """Of the index."""
    _placed: dict[str, Place] = field(default_factory=dict)
    _kept: dict[str, Place] = field(default_factory=dict)
    """Second places of VMs that migrate."""
    _closed: frozenset[str] = frozenset()
    """Hosts for those alone who name them."""
    _is_mixed: bool = field(init=False)
    """Whether hosts show guests several kinds of processors."""

    def __post_init__(self) -> None:
        self._numbers = {account.name: number for number, account in enumerate(self.accounts)}
        self._index = HostIndex(self.accounts, FIRMWARE_BYTES)
        self._changed = self._index.changed
        products = (account.product for account in self.accounts if account.product)
        self._is_mixed = len({(one.name, one.cpuid) for one in products}) > 1

    def place(self, guest: GuestSpec, pin: str | None = None, excluded: frozenset[str] = frozenset()) -> str | None:
        """Reserve a host for a VM and return its name, None if no host takes it."""
        number = self._found(guest, pin, excluded, 0, None)
        return None if number is None else self._reserve(number, guest, self._placed)

    def keep(self, name: str, pin: str | None, excluded: frozenset[str], first: int = 0) -> str | None:
        """Reserve a second host for a VM that is to move, None if no other takes it; the search begins at ``first``."""
        account, guest = self._placed[name]
        if self._is_mixed and account.product is not None and not (guest.cpu_model or guest.launched_on):
            # Wherever it goes, it is shown from now on what it has been shown so far.
            guest = replace(guest, launched_on=shown_by(account.product))
            self._placed[name] = (account, guest)
        number = self._found(guest, pin, excluded, first, account)
        return None if number is None else self._reserve(number, guest, self._kept)

    def misfit(self, name: str, pin: str | None) -> MigrationRefusal | None:
        """Why a VM cannot go to the host that is named, or to any other, however much room there were."""
        account, guest = self._placed[name]
        found = [account.unfit(guest, one) for one in self.accounts if one is not account and pin in (None, one.name)]
        return found[0] if found and None not in found else None

    def no_room(self, name: str, pin: str | None, excluded: frozenset[str]) -> str:
        """What is missing where a VM that is to move found no place: on the host that is named, or on all others.

        Hosts to which it could never go have nothing that it lacks.
        """
        account, guest = self._placed[name]
        if pin is None:
            excluded = excluded | self._closed
        others = [one for one in self.accounts if one is not account and pin in (None, one.name)]
        asked = [one for one in others if one.name not in excluded and account.unfit(guest, one) is None]
        short = [what for one in asked for what in one.short_of(guest)]
        where = "no host has room" if pin is None else f"no room on {pin}"
        if not asked:
            short = ["all others that could take it are being emptied" if others else "there is no other"]
        return ": ".join([where, *filter(None, [", ".join(dict.fromkeys(short))])])

    def _reserve(self, number: int, guest: GuestSpec, places: dict[str, Place]) -> str:
        account = self.accounts[number]
        account.charge(guest, 1)
        self._changed[account.name] = None
        places[guest.name] = account, guest
        return account.name

    def close(self, host: str) -> None:
        """Give no place on a host any more to a VM that does not name it."""
        self._closed |= {host}

    def _found(
        self, guest: GuestSpec, pin: str | None, excluded: frozenset[str], first: int, but: HostAccount | None
    ) -> int | None:
        """The host that is named, if it takes the VM, or else the first from ``first`` on and round, but for one."""
        if pin is not None:
            number = self._numbers.get(pin)
            free = number is not None and pin not in excluded and self.accounts[number].takes(guest)
            return number if free else None
        if self._closed:
            excluded = excluded | self._closed
        found = self._index.first(guest, first, len(self.accounts), excluded, but)
        return self._index.first(guest, 0, first, excluded, but) if found is None and first else found

    def settle(self, name: str, *, moved: bool) -> None:
        """A migration is over: the VM lives in its second place now, or that is given back."""
        place = self._kept.pop(name)
        if moved:
            place, self._placed[name] = self._placed[name], place
        account, guest = place
        account.charge(guest, -1)
        self._changed[account.name] = None

    def place_of(self, name: str) -> Place | None:
        """A VM's place, None for one that has none."""
        return self._placed.get(name)

    def host_of(self, name: str) -> str | None:
        """Where a VM is, None if nowhere."""
        place = self._placed.get(name)
        return None if place is None else place[0].name

    def places(self) -> dict[str, str]:
        """Every VM that has a place, and its host: as it is now, whatever becomes of it."""
        return {name: account.name for name, (account, _) in self._placed.items()}

    def guest(self, name: str) -> GuestSpec:
        """The specification of a VM that has a place; KeyError if it has none."""
        return self._placed[name][1]

    def on(self, host: str) -> list[str]:
        """The VMs on a host, in the order they came."""
        return [name for name, (account, _) in self._placed.items() if account.name == host]

    def release(self, name: str) -> str | None:
        """Give a VM's share back; the host it was on, None if it was nowhere."""
        place = self._placed.pop(name, None)
        if place is None:
            return None
        account, guest = place
        account.charge(guest, -1)
        self._changed[account.name] = None
        return account.name
