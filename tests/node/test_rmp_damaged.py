"""Any bytes in the table: every instruction and access still has an answer of its list, and nothing else happens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rmp_laboratory import GUEST_SPA, Laboratory, gctx, laboratory

from node import operations as op
from node.physical_port import PhysicalPort
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.launch_digest import PageType
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LARGE = LARGE_PAGE_BYTES
FIRST, INSIDE = 0, 5
"""Pages of the block whose entries are damaged; the first speaks for the block if it says that it is large."""

# What every bit of the low word may be: half of the draws look like an entry of guest one.
_own = st.integers(0, (1 << 12) - 1).map(lambda bits: bits | 1 << 51 | 1 << 62)
words = st.one_of(_own, st.integers(0, (1 << 64) - 1), st.sampled_from((0, (1 << 64) - 1, 3 | 1 << 51 | 1 << 62)))


@pytest.fixture(scope="module", params=["Milan", "Turin"])
def lab(request: pytest.FixtureRequest) -> Laboratory:
    return laboratory(request.param)


def own(*, large: bool = False, immutable: bool = False, page: int = FIRST) -> RmpEntry:
    return RmpEntry(assigned=True, large=large, immutable=immutable, gpa=page * PAGE_BYTES, asid=1)


HOST = (
    *[op.RmpUpdate(GUEST_SPA + page * PAGE_BYTES, PAGE_BYTES, entry)
      for page in (FIRST, INSIDE) for entry in (RmpEntry(), own(page=page), own(page=page, immutable=True))],
    *[op.RmpUpdate(GUEST_SPA, LARGE, entry) for entry in (RmpEntry(large=True), own(large=True), own())],
    op.PSmash(GUEST_SPA),
)  # fmt: skip
GUEST = (
    *[op.PValidate(page * PAGE_BYTES, PAGE_BYTES, False, validate) for page in (FIRST, INSIDE)
      for validate in (True, False)],
    op.PValidate(0, LARGE, large=True), op.PValidate(0, LARGE, large=False),
    *[op.RmpAdjust(page * PAGE_BYTES, PAGE_BYTES, False, 1, 3, vmsa=True) for page in (FIRST, INSIDE)],
    op.RmpAdjust(0, LARGE, True, 2, 1), op.RmpQuery(0, 1), op.RmpQuery(INSIDE * PAGE_BYTES, 3),
    op.Read(0, 8), op.Write(INSIDE * PAGE_BYTES, b"x"), op.Read(PAGE_BYTES - 4, 8),
    op.Write(0, b"x", private=False),
)  # fmt: skip
COMMANDS = (
    (SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(GUEST_SPA)),
    (SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(GUEST_SPA | 1)),
    (SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(GUEST_SPA)),
    (SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate(gctx("three"), PageType.NORMAL << 1, GUEST_SPA)),
)
CODES = {0, 1, 2, 3, 4, 6, 7}
FAULTS = {op.FaultKind.RMP_FAULT, op.FaultKind.PAGE_NOT_VALIDATED}


def answered(answer: op.Answer) -> bool:
    """Whether an answer is one of those that the manuals list."""
    match answer:
        case op.Fault(kind):
            return kind in FAULTS
        case op.PValidateResult(code) | op.RmpQueryResult(code):
            return code in CODES
        case int():
            return answer in CODES
        case _:
            return answer is None or isinstance(answer, bytes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.tuples(words, words, words, words), counter=words,
    host=st.permutations(HOST), guest=st.permutations(GUEST), commands=st.permutations(COMMANDS),
)  # fmt: skip
@example(entries=((1 << 64) - 1,) * 4, counter=(1 << 64) - 1, host=HOST, guest=GUEST, commands=COMMANDS)
def test_every_instruction_has_an_answer_on_a_damaged_table(
    lab: Laboratory, entries: tuple[int, int, int, int], counter: int, host: list[op.HypervisorOperation],
    guest: list[op.GuestOperation], commands: list[tuple[SnpCommand, buffers.ByteLayout]],
) -> None:  # fmt: skip
    port = PhysicalPort(lab.board.dram)
    at = lab.entries_spa()
    assert lab.board.rmp is not None
    others = port.dump(at + 8192, 8192)

    def damage() -> None:
        port.poke(at, bytes(8192))
        port.poke(at, struct.pack("<2Q", *entries[:2]))
        port.poke(at + INSIDE * 16, struct.pack("<2Q", *entries[2:]))
        port.poke(lab.board.rmp.layout.base + 8, counter.to_bytes(8, "little"))  # type: ignore[union-attr]

    for n in range(max(len(host), len(guest))):
        damage()
        assert answered(lab.guest("one", guest[n % len(guest)])[0])
        assert answered(lab.host(host[n % len(host)])[0])
        assert answered(lab.guest("one", guest[-n], vmpl=1)[0])
        assert answered(lab.host(op.HostClear(GUEST_SPA, 2 * PAGE_BYTES))[0])
        lab.firmware(*commands[n % len(commands)])  # a status that the firmware has, or this raises
    assert port.dump(at + 8192, 8192) == others
