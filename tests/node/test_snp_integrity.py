"""Whatever hypervisor and devices do, an SNP guest reads its last store or nothing, and nobody reads another's.

With translation buffers and caches on, unlike ``test_rmp_machine``: stale lines and translations are among what
may go wrong. Guests validate each page once, as a guest should.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import pytest
from iommu_boards import do
from rmp_laboratory import GUEST_SPA, VMS, Laboratory, give, laboratory, page_of

from node import operations as op
from node.iommu_driver import IommuDriver
from node.platform import HostMode, Platform, Protection
from psp.system_bus import PAGE_BYTES, RmpEntry

OWNED = {"one": (0, 1, 2, 511), "two": (512, 513, 514, 700)}
PAGES = tuple(page for pages in OWNED.values() for page in pages)
SLOT, TOKEN_BYTES = 3, 32
STEPS = 150

Act = Callable[["World", str, int, int], None]


class World:
    """The board, what each guest stored last, and whose each token is."""

    def __init__(self, product: str, platform: Platform, random: Random) -> None:
        self.random = random
        self.lab: Laboratory = laboratory(product, platform)
        self.owner: dict[bytes, str] = {}
        self.last: dict[tuple[str, int], bytes] = {}
        for vm, pages in OWNED.items():
            for page in pages:
                give(self.lab, page_of(page * PAGE_BYTES, asid=VMS[vm]), offset=page * PAGE_BYTES)
                self.store(vm, page)
        mapped = [(page * PAGE_BYTES, spa(page)) for page in PAGES]
        driver = IommuDriver(iter(range(48 << 20, 56 << 20, PAGE_BYTES)).__next__)
        do(self.lab.board, driver.attach(0x100 | SLOT << 3, 7, mapped))

    def host(self, one: op.HypervisorOperation) -> None:
        self.told("host", self.lab.host(one)[0])

    def store(self, vm: str, page: int) -> None:
        token = self.random.randbytes(TOKEN_BYTES)
        if (vm, page) in self.last or page in OWNED[vm]:
            self.owner[token] = vm
            if self.lab.guest(vm, op.Write(page * PAGE_BYTES, token)) == (None,):
                self.last[vm, page] = token

    def load(self, vm: str, page: int) -> None:
        (seen,) = self.lab.guest(vm, op.Read(page * PAGE_BYTES, TOKEN_BYTES))
        self.told(vm, seen)
        assert isinstance(seen, op.Fault) or seen == self.last.get((vm, page))

    def told(self, who: str, answer: op.Answer) -> None:
        if isinstance(answer, bytes):
            for token, owner in self.owner.items():
                assert owner == who or token not in answer, f"{who} was told what {owner} wrote"


def spa(page: int) -> int:
    return GUEST_SPA + page * PAGE_BYTES


def some_entry(world: World, vm: str, page: int, other: int) -> RmpEntry:
    return world.random.choice([
        RmpEntry(), page_of(other * PAGE_BYTES, asid=VMS[vm]), page_of(page * PAGE_BYTES, asid=VMS[vm]),
        page_of(page * PAGE_BYTES, asid=VMS[vm], immutable=True),
    ])  # fmt: skip


ACTS: tuple[Act, ...] = (
    lambda world, vm, page, _: world.store(vm, page),
    lambda world, vm, page, _: world.load(vm, page),
    lambda world, vm, page, _: world.load(vm, page),
    lambda world, vm, page, _: world.told(vm, world.lab.guest(vm, op.Read(page * PAGE_BYTES, 64, private=False))[0]),
    lambda world, vm, page, other: world.host(
        op.NestedMap(vm, page * PAGE_BYTES, spa(other), PAGE_BYTES, large=False)),
    lambda world, vm, page, _: world.host(op.NestedMap(vm, page * PAGE_BYTES, spa(page), PAGE_BYTES, large=False)),
    lambda world, vm, page, other: world.host(
        op.RmpUpdate(spa(page), PAGE_BYTES, some_entry(world, vm, page, other)) if not world.random.randrange(4)
        else op.PSmash(GUEST_SPA)),
    lambda world, _, page, other: world.host(op.HostWrite(spa(page) + other % 128, b"evil" * 5)),
    lambda world, _, page, other: world.host(op.HostRead(spa(page), 64, encrypted=bool(other % 2))),
    lambda world, _, page, __: world.host(op.DeviceWrite(SLOT, page * PAGE_BYTES, b"evil" * 5)),
    lambda world, _, page, __: world.host(op.DeviceRead(SLOT, page * PAGE_BYTES, 64)),
    lambda world, vm, page, other: world.host(op.VmRun(vm, other % 2, page % 3)),
    lambda world, vm, page, _: world.host(op.VmPreempt(vm, 0) if page % 2 else op.VmKick(vm, 0)),
    lambda world, _, page, __: world.host(op.Wbinvd() if page % 2 else op.HostClflush(spa(page), PAGE_BYTES)),
    lambda world, vm, page, _: world.host(op.VmPageFlush(spa(page), VMS[vm])),
)  # fmt: skip


def play(world: World) -> None:
    for _ in range(STEPS):
        act = world.random.choice(ACTS)
        act(world, world.random.choice(list(OWNED)), world.random.choice(PAGES), world.random.choice(PAGES))


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize(("caches", "mode"), [(False, HostMode.NONE), (True, HostMode.SME)])
@pytest.mark.parametrize("seed", range(4))
def test_hypervisor_and_devices_change_nothing_that_a_guest_reads(
    product: str, caches: bool, mode: HostMode, seed: int
) -> None:
    platform = Platform(mode=mode, caches=caches, tlb_entries=16)
    play(World(product, platform, Random(f"{product} {caches} {seed}")))


@pytest.mark.parametrize("missing", [Protection.RMP_WRITE_CHECK, Protection.GPA_MATCH, Protection.IOMMU_CHECK])
def test_but_for_one_mechanism_they_do(missing: Protection) -> None:
    platform = Platform(disabled=frozenset({missing}), tlb_entries=16)
    worlds = (World("Milan", platform, Random(seed)) for seed in range(20))
    with pytest.raises(AssertionError):
        deque(map(play, worlds), maxlen=0)
