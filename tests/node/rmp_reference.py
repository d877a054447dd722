"""A small RMP written from the rules alone: one dictionary of pages, one entry at a time.

It shares no code with the one it judges. Answers are codes, or words for faults.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
        self.in_use: set[int] = set()
        """Save areas of running vCPUs."""

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
        if self.in_use & set(touched):
            return 3
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
        if self.in_use & set(self.block(page)):
            return 3
        for one in self.block(page):
            self.pages[one].large = False
        return 0

    def vmrun(self, page: int, asid: int) -> int:
        """VMRUN with a save area that lies there."""
        here = self.at(page)
        if not (here.assigned and here.asid == asid and here.validated and here.vmsa and not here.immutable):
            return -1
        return -2 if page in self.in_use else 0

    def host_may_write(self, page: int) -> bool:
        return not self.at(page).assigned

    # Firmware.

    def state(self, page: int) -> str:
        """The firmware's name of a page's state."""
        here = self.at(page)
        if not here.assigned:
            return "Hypervisor"
        if not here.asid:
            if not here.immutable:
                return "Reclaim"
            return "Context" if here.vmsa else "Firmware"
        if here.immutable:
            return "Pre-Swap" if here.validated else "Pre-Guest"
        return "Guest-Valid" if here.validated else "Guest-Invalid"

    def reclaim(self, page: int, large: bool) -> str:
        """SNP_PAGE_RECLAIM: what was immutable is so no more."""
        if large and page % PAGES_OF_2_MIB:
            return "INVALID_ADDRESS"
        if self.state(page) not in ("Firmware", "Pre-Guest", "Pre-Swap"):
            return "INVALID_PAGE_STATE"
        if self.at(page).large != large:
            return "INVALID_PAGE_SIZE"
        for one in self.block(page) if large else [page]:
            self.pages[one].immutable = False
        return "SUCCESS"

    def launch_update(self, page: int, asid: int, rights: tuple[int, int, int], save_area: bool) -> str:
        """SNP_LAUNCH_UPDATE for the guest of ``asid``, of 4 KiB."""
        here = self.at(page)
        if self.state(page) != "Pre-Guest":
            return "INVALID_PAGE_STATE"
        if here.asid != asid:
            return "INVALID_PAGE_OWNER"
        if here.large:
            return "INVALID_PAGE_SIZE"
        here.immutable, here.validated, here.vmsa = False, True, save_area
        here.permissions[1:] = rights
        return "SUCCESS"

    def unsmash(self, page: int) -> str:
        """SNP_PAGE_UNSMASH."""
        if page % PAGES_OF_2_MIB:
            return "INVALID_ADDRESS"
        first = self.at(page)
        if first.large:
            return "INVALID_PAGE_SIZE"
        agree = first.asid > 0 and first.gpa % PAGES_OF_2_MIB == 0
        for distance, one in enumerate(self.block(page)):
            agree = agree and self.at(one) == replace(first, gpa=first.gpa + distance)
        if not agree:
            return "INVALID_PAGE_STATE"
        for one in self.block(page):
            self.pages[one].large = True
        return "SUCCESS"

    def gctx_create(self, page: int) -> str:
        """SNP_GCTX_CREATE."""
        if self.state(page) != "Firmware":
            return "INVALID_PAGE_STATE"
        if self.at(page).large:
            return "INVALID_PAGE_SIZE"
        self.pages[page].vmsa = True
        return "SUCCESS"

    def decommission(self, page: int) -> str:
        """SNP_DECOMMISSION of a guest that was only made: its page is the firmware's again."""
        if self.state(page) != "Context":
            return "INVALID_GUEST"
        self.pages[page].vmsa = False
        return "SUCCESS"

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
        if self.in_use_in(page, large):
            return 3
        for one in self.block(page) if large else [page]:
            self.pages[one].permissions[target] = rights
            if vmpl == 0:
                self.pages[one].vmsa = vmsa
        return 0

    def in_use_in(self, page: int, large: bool) -> bool:
        """Whether a running vCPU's save area is among the pages that an instruction names."""
        return bool(self.in_use & set(self.block(page) if large else [page]))

    def rmpquery(self, page: int, gpa: int, asid: int, vmpl: int, target: int) -> object:
        if target < vmpl:
            return 2
        return self.trouble(page, gpa, asid) or (self.at(page).permissions[target], self.at(page).large)

    def access(self, page: int, gpa: int, asid: int, vmpl: int, write: bool, *, mapped_large: bool = True) -> str:
        trouble = self.trouble(page, gpa, asid)
        if trouble != "npf" and self.at(page).large and not mapped_large:
            return "npf sizem"
        if trouble:
            return trouble
        needed = 2 if write else 1
        return "" if self.at(page).permissions[vmpl] & needed else "npf vmpl"
