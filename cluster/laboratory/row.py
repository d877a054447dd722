"""What a row of the attack matrix says of a scene, and the programs that carry it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.laboratory.bad_hypervisor import Prelude
from cluster.laboratory.interface import Interface
from cluster.laboratory.scene import USUAL, Cast
from node.card_slot import CardSlot
from workloads.attacks.target import Attack, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the matrix. Where ``attacks`` are several, each is a way that the line names."""

    attacks: tuple[Callable[[Target], Attack], ...]
    needs: Interface | None = None
    """What the host must have, or the line is not applicable."""
    ghost_line: int = 0
    """An address line that the host's modules must lack."""
    caches: bool = False
    """Cores must have caches."""
    cast: Cast = USUAL
    svsm: bool = False
    """The victim must be an SVSM, and the operating system above it the attacker's."""
    tlb_entries: int | None = None
    """Cores must remember so many translations."""
    page_tables: bool = False
    """The victim must have page tables of its own."""
    two_processes: bool = False
    """The victim must have two vCPUs with page tables of their own."""
    tenant_spins: bool = False
    """The tenant must never rest."""
    fabric_locked: bool = True
    """Whether boot firmware locks the data fabric; an attacker who owns it does not."""
    prelude: Prelude | None = None
    """What the hypervisor must do before SNP starts."""
    chosen_status: bytes = b""
    """What the victim must be made to read as its status, where garbage is not enough."""
    chosen_code: bytes = b""
    """As ``chosen_status``, in the place of what it runs."""
    victim: str = "vault"
    """The victim's program."""
    cache_timing: bool = False
    """Loads must take as long as the line's place says."""
    leak_bytes: int = 16
    """How many bytes of a secret make a leak."""
    old_firmware: bool = False
    """Nobody must have updated the security processor's firmware."""
    habits: Mapping[str, bool] | None = None
    """What the line says of its victim's owner, by names of OwnerHabits; None for lines in which it has no part."""
    platform_key: bool = False
    """The victim counts the private key that its platform agrees with among its secrets."""
    outbox_is_secret: bool = False
    """What the victim sends through its outbox is a secret that it hands to a device of its own."""
    card: CardSlot | None = None
    """What the hypervisor gives a victim that has a device."""
    tenant_has_card: bool = False
    """The attacker's guest must have a card too, where it can trust it."""
    moves: bool = False
    """There is another host of the attacker's, and on both a migration agent that SNP guests are launched with."""
    open_without_key: bool = False
    """A victim without a key of its own keeps no secret: to move it is to read it, which another line is about."""
    sev_policy: int = 0
    """Bits of a SEV victim's policy that the line presumes."""
    ways: Mapping[str, int] | None = None
    """Ways of such a victim that the line presumes, by names of DepositorWays."""
