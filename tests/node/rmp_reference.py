"""A small RMP written from the rules alone: one dictionary of pages, one entry at a time.

It shares no code with the one it judges. Answers are codes, or words for faults.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGES_OF_2_MIB = 512


@dataclass
class Page:
    """What the table says of one page."""

    assigned: bool = False
    large: bool = False
    immutable: bool = False
    gpa: int = 0
    asid: int = 0
    vmsa: bool = False
    validated: bool = False
    permissions: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


class Reference:
    """Pages by number; addresses of guests are page numbers too."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def at(self, page: int) -> Page:
        return self.pages.get(page, Page())

    def block(self, page: int) -> list[int]:
        first = page - page % PAGES_OF_2_MIB
        return list(range(first, first + PAGES_OF_2_MIB))

    # The host.

    def rmpupdate(self, page: int, assigned: bool, large: bool, immutable: bool, gpa: int, asid: int) -> int:
        if large and (page % PAGES_OF_2_MIB or (asid and gpa % PAGES_OF_2_MIB)):
            return 1
        if not assigned and (asid or immutable):
            return 1
        if assigned and not asid and gpa:
            return 1
        touched = self.block(page) if large else [page]
        if any(self.at(one).immutable for one in touched):
            return 2
        if any(self.at(one).assigned and self.at(one).large != large for one in touched):
            return 4
        for distance, one in enumerate(touched):
            old = self.at(one)
            here = gpa + distance if asid else 0
            if not assigned:
                self.pages.pop(one, None)
            elif old.assigned and old.asid == asid and old.gpa == here:
                old.immutable = immutable
            else:
                rights = [15, 0, 0, 0] if asid else [0, 0, 0, 0]
                self.pages[one] = Page(True, large, immutable, here, asid, False, False, rights)
        return 0

    def psmash(self, page: int) -> int:
        if page % PAGES_OF_2_MIB:
            return 1
        if not (self.at(page).assigned and self.at(page).large):
            return 7
        if self.at(page).immutable:
            return 2
        for one in self.block(page):
            self.pages[one].large = False
        return 0

    def host_may_write(self, page: int) -> bool:
        return not self.at(page).assigned

    # Firmware.

    def reclaim(self, page: int) -> None:
        """SNP_PAGE_RECLAIM: what was immutable is so no more."""
        for one in self.block(page) if self.at(page).large else [page]:
            if one in self.pages:
                self.pages[one].immutable = False

    def launch_update(self, page: int) -> None:
        """SNP_LAUNCH_UPDATE of a Pre-Guest page of 4 KiB."""
        self.pages[page].immutable, self.pages[page].validated = False, True

    # A guest: the page lies at ``page``, the guest calls it ``gpa``.

    def trouble(self, page: int, gpa: int, asid: int) -> str:
        here = self.at(page)
        mine = here.assigned and here.asid == asid and here.gpa == gpa and not here.immutable
        if not mine:
            return "npf"
        return "" if here.validated else "vc"

    def pvalidate(self, page: int, gpa: int, asid: int, vmpl: int, large: bool, validate: bool) -> tuple[object, bool]:
        if vmpl:
            return 2, False
        if large and gpa % PAGES_OF_2_MIB:
            return 1, False
        if self.trouble(page, gpa, asid) == "npf":
            return "npf", False
        if self.at(page).large and not large:
            return "npf sizem", False
        if large and not self.at(page).large:
            return 6, False
        if self.at(page).validated == validate:
            return 0, True
        for one in self.block(page) if large else [page]:
            self.pages[one].validated = validate
        return 0, False

    def rmpadjust(
        self, page: int, gpa: int, asid: int, vmpl: int, large: bool, target: int, rights: int, vmsa: bool
    ) -> object:
        if large and gpa % PAGES_OF_2_MIB:
            return 1
        if target <= vmpl:
            return 2
        trouble = self.trouble(page, gpa, asid)
        if trouble == "npf":
            return "npf"
        if self.at(page).large and not large:
            return "npf sizem"
        if trouble:
            return trouble
        if large and not self.at(page).large:
            return 6
        if rights & ~self.at(page).permissions[vmpl]:
            return 2
        for one in self.block(page) if large else [page]:
            self.pages[one].permissions[target] = rights
            if vmpl == 0:
                self.pages[one].vmsa = vmsa
        return 0

    def rmpquery(self, page: int, gpa: int, asid: int, vmpl: int, target: int) -> object:
        if target < vmpl:
            return 2
        return self.trouble(page, gpa, asid) or (self.at(page).permissions[target], self.at(page).large)

    def access(self, page: int, gpa: int, asid: int, vmpl: int, write: bool) -> str:
        trouble = self.trouble(page, gpa, asid)
        if trouble:
            return trouble
        needed = 2 if write else 1
        return "" if self.at(page).permissions[vmpl] & needed else "npf vmpl"
