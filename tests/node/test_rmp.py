"""The RMP against a model of one dictionary entry per page, and its codes in the documented order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rmp_tables import flat_rmp, rmp_of

from node.rmp import (
    ERROR_ENC,
    ERROR_FINAL,
    ERROR_PRESENT,
    ERROR_RMP,
    ERROR_SIZEM,
    ERROR_USER,
    ERROR_WRITE,
    GuestCore,
    NotValidated,
    ReverseMapTable,
    RmpCode,
    RmpFault,
)
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE
from node.rmp_switches import RmpSwitches
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

MIB = 1 << 20
BLOCKS = 3
PAGES = 512
ALL = (0xF, 0, 0, 0)
NPF = ERROR_PRESENT | ERROR_USER | ERROR_RMP | ERROR_FINAL | ERROR_ENC


def guest(gpa: int = 0, *, large: bool = False, immutable: bool = False, asid: int = 1) -> RmpEntry:
    return RmpEntry(assigned=True, large=large, immutable=immutable, gpa=gpa, asid=asid)


def table(*updates: tuple[int, int, RmpEntry]) -> ReverseMapTable:
    rmp = rmp_of(BLOCKS * LARGE_PAGE_BYTES)
    for spa, length, entry in updates:
        assert rmp.rmpupdate(spa, length, entry) is RmpCode.SUCCESS
    return rmp


@pytest.mark.parametrize(
    ("spa", "length", "entry"),
    [
        (1, PAGE_BYTES, guest()),
        (PAGE_BYTES, LARGE_PAGE_BYTES, guest(large=True)),
        (BLOCKS * LARGE_PAGE_BYTES, PAGE_BYTES, guest()),
        (-PAGE_BYTES, PAGE_BYTES, guest()),
        (0, 0, guest()),
        (0, PAGE_BYTES, RmpEntry(asid=1)),
        (0, PAGE_BYTES, RmpEntry(immutable=True)),
        (0, LARGE_PAGE_BYTES, guest(PAGE_BYTES, large=True)),
        (0, PAGE_BYTES, guest(0x10)),
        (0, PAGE_BYTES, guest(-PAGE_BYTES)),
        (0, 2 * PAGE_BYTES, guest((1 << 51) - PAGE_BYTES)),
        (0, PAGE_BYTES, guest(asid=1024)),
        (0, PAGE_BYTES, guest(asid=-1)),
        (0, PAGE_BYTES, guest(0x1000, asid=0, immutable=True)),
    ],
)
def test_rmpupdate_refuses_bad_input(spa: int, length: int, entry: RmpEntry) -> None:
    rmp = table()
    assert rmp.rmpupdate(spa, length, entry) is RmpCode.FAIL_INPUT
    assert len(rmp) == 0


def test_an_immutable_entry_is_not_the_hypervisor_s_to_change() -> None:
    rmp = table((0, PAGE_BYTES, guest(immutable=True)))
    assert rmp.rmpupdate(0, PAGE_BYTES, RmpEntry()) is RmpCode.FAIL_PERMISSION
    assert rmp.rmpupdate(0, LARGE_PAGE_BYTES, guest(large=True)) is RmpCode.FAIL_PERMISSION


def test_a_page_the_host_keeps_for_itself_is_writable_and_cannot_be_assigned() -> None:
    rmp = table()
    rmp.set_entry(0, RmpEntry(immutable=True))  # HV-Fixed
    rmp.check_host_write(0, PAGE_BYTES)
    for entry in (guest(), RmpEntry()):
        assert rmp.rmpupdate(0, PAGE_BYTES, entry) is RmpCode.FAIL_PERMISSION


def test_one_immutable_page_outweighs_an_overlap_before_it() -> None:
    rmp = table((0, PAGE_BYTES, guest()), (7 * PAGE_BYTES, PAGE_BYTES, guest(immutable=True)))
    assert rmp.rmpupdate(0, LARGE_PAGE_BYTES, guest(large=True)) is RmpCode.FAIL_PERMISSION
    assert rmp.rmpupdate(0, LARGE_PAGE_BYTES, RmpEntry(large=True)) is RmpCode.FAIL_PERMISSION
    assert rmp.pages_of_asid(1) == 2


def test_a_range_is_updated_up_to_the_first_page_that_is_refused() -> None:
    rmp = table((2 * PAGE_BYTES, PAGE_BYTES, guest(immutable=True, asid=2)))
    assert rmp.rmpupdate(0, 4 * PAGE_BYTES, guest()) is RmpCode.FAIL_PERMISSION
    assert [rmp.entry(page * PAGE_BYTES).asid for page in range(4)] == [1, 1, 2, 0]


def test_sizes_that_overlap_are_refused() -> None:
    small = table((5 * PAGE_BYTES, PAGE_BYTES, guest()))
    assert small.rmpupdate(0, LARGE_PAGE_BYTES, guest(large=True)) is RmpCode.FAIL_OVERLAP
    assert not small.entry(0).assigned
    large = table((0, LARGE_PAGE_BYTES, guest(large=True)))
    assert large.rmpupdate(PAGE_BYTES, PAGE_BYTES, RmpEntry()) is RmpCode.FAIL_OVERLAP


def test_validation_survives_an_update_that_only_sets_immutable() -> None:
    rmp = table((0, PAGE_BYTES, guest(0x7000)))
    assert rmp.pvalidate(0, 0x7000, GuestCore(1), PAGE_BYTES, large=False, validate=True) == (RmpCode.SUCCESS, False)
    rmp.rmpupdate(0, PAGE_BYTES, guest(0x7000, immutable=True))
    assert rmp.entry(0).validated
    assert rmp.entry(0).immutable


def test_a_switch_lets_immutable_take_validation_away() -> None:
    rmp = rmp_of(LARGE_PAGE_BYTES, RmpSwitches(immutable_keeps_validated=False))
    rmp.rmpupdate(0, PAGE_BYTES, guest(0x7000))
    rmp.pvalidate(0, 0x7000, GuestCore(1), PAGE_BYTES, large=False, validate=True)
    rmp.rmpupdate(0, PAGE_BYTES, guest(0x7000))
    assert rmp.entry(0).validated  # nothing changed at all
    rmp.rmpupdate(0, PAGE_BYTES, guest(0x7000, immutable=True))
    assert not rmp.entry(0).validated


@pytest.mark.parametrize("changed", [guest(0x8000), guest(0x7000, asid=2), RmpEntry()])
def test_any_other_update_takes_validation_away(changed: RmpEntry) -> None:
    rmp = table((0, PAGE_BYTES, guest(0x7000)))
    rmp.pvalidate(0, 0x7000, GuestCore(1), PAGE_BYTES, large=False, validate=True)
    rmp.rmpupdate(0, PAGE_BYTES, changed)
    assert not rmp.entry(0).validated


def test_psmash_leaves_512_entries_that_inherit_everything() -> None:
    rmp = table((LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, guest(4 * MIB, large=True)))
    rmp.pvalidate(LARGE_PAGE_BYTES, 4 * MIB, GuestCore(1), LARGE_PAGE_BYTES, large=True, validate=True)
    assert rmp.psmash(LARGE_PAGE_BYTES) is RmpCode.SUCCESS
    for page in (0, 1, 511):
        assert rmp.entry(LARGE_PAGE_BYTES + page * PAGE_BYTES) == RmpEntry(
            assigned=True, gpa=4 * MIB + page * PAGE_BYTES, asid=1, validated=True, vmpl_permissions=ALL
        )


def test_psmash_of_a_large_save_area_keeps_each_page_s_own_address() -> None:
    rmp = table((0, LARGE_PAGE_BYTES, guest(4 * MIB, large=True)))
    rmp.set_entry(0, replace(rmp.entry(0), vmsa=True, validated=True))
    assert rmp.psmash(0) is RmpCode.SUCCESS
    assert rmp.entry(5 * PAGE_BYTES).gpa == 4 * MIB + 5 * PAGE_BYTES
    assert rmp.entry(5 * PAGE_BYTES).vmsa


def test_psmash_refuses_what_is_no_large_page() -> None:
    rmp = table((0, PAGE_BYTES, guest()), (LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, guest(large=True, immutable=True)))
    assert rmp.psmash(PAGE_BYTES) is RmpCode.FAIL_INPUT
    assert rmp.psmash(BLOCKS * LARGE_PAGE_BYTES) is RmpCode.FAIL_INPUT
    assert rmp.psmash(0) is RmpCode.FAIL_NOT_LARGE
    assert rmp.psmash(LARGE_PAGE_BYTES) is RmpCode.FAIL_PERMISSION


def test_validating_twice_is_reported_and_changes_nothing() -> None:
    rmp = table((0, 2 * PAGE_BYTES, guest()))
    assert rmp.pvalidate(0, 0, GuestCore(1), PAGE_BYTES, large=False, validate=True) == (RmpCode.SUCCESS, False)
    assert rmp.pvalidate(0, 0, GuestCore(1), 2 * PAGE_BYTES, large=False, validate=True) == (RmpCode.SUCCESS, True)
    assert rmp.entry(PAGE_BYTES).validated


def test_a_large_validation_of_small_entries_is_a_size_mismatch() -> None:
    rmp = table((0, LARGE_PAGE_BYTES, guest()))
    code, _ = rmp.pvalidate(0, 0, GuestCore(1), LARGE_PAGE_BYTES, large=True, validate=True)
    assert code is RmpCode.FAIL_SIZEMISMATCH
    assert not rmp.entry(0).validated


def test_a_large_validation_backed_between_borders_is_a_mismatch_for_its_owner_and_a_fault_for_others() -> None:
    rmp = table((PAGE_BYTES, LARGE_PAGE_BYTES, guest()))
    code, _ = rmp.pvalidate(PAGE_BYTES, 0, GuestCore(1), LARGE_PAGE_BYTES, large=True, validate=True)
    assert code is RmpCode.FAIL_SIZEMISMATCH
    with pytest.raises(RmpFault):
        rmp.pvalidate(PAGE_BYTES, 0, GuestCore(2), LARGE_PAGE_BYTES, large=True, validate=True)


def test_a_small_validation_of_a_large_entry_faults_with_sizem() -> None:
    rmp = table((0, LARGE_PAGE_BYTES, guest(large=True)))
    with pytest.raises(RmpFault) as caught:
        rmp.pvalidate(0, 0, GuestCore(1), PAGE_BYTES, large=False, validate=True)
    assert caught.value.error == NPF | ERROR_SIZEM


@pytest.mark.parametrize(("gpa", "asid"), [(0x1000, 1), (0, 2)])
def test_a_page_at_another_address_or_of_another_guest_cannot_be_validated(gpa: int, asid: int) -> None:
    rmp = table((0, PAGE_BYTES, guest()))
    with pytest.raises(RmpFault) as caught:
        rmp.pvalidate(0, gpa, GuestCore(asid), PAGE_BYTES, large=False, validate=True)
    assert caught.value.error == NPF


def test_a_private_access_needs_owner_address_and_validation() -> None:
    rmp = table((0, 4 * PAGE_BYTES, guest(0x7000)))
    with pytest.raises(NotValidated):
        rmp.check_guest_private(0, 0x7000, 1, 16)
    rmp.pvalidate(0, 0x7000, GuestCore(1), 4 * PAGE_BYTES, large=False, validate=True)
    rmp.check_guest_private(0x10, 0x7010, 1, 3 * PAGE_BYTES)
    for spa, gpa, asid, length in (
        (0, 0x8000, 1, 16),
        (0, 0x7000, 2, 16),
        (0x3000, 0xA000, 1, PAGE_BYTES + 1),
        (0x4000, 0xB000, 1, 16),
    ):
        with pytest.raises(RmpFault):
            rmp.check_guest_private(spa, gpa, asid, length)
    rmp.set_entry(0, replace(rmp.entry(0), immutable=True))
    for needs, error in ((PERMIT_READ, NPF), (PERMIT_WRITE, NPF | ERROR_WRITE)):
        with pytest.raises(RmpFault) as caught:
            rmp.check_guest_private(0, 0x7000, 1, 16, needs=needs)
        assert caught.value.error == error


def test_pages_outside_of_the_table_are_the_hypervisor_s() -> None:
    rmp = table()
    outside = BLOCKS * LARGE_PAGE_BYTES
    assert rmp.entry(outside) == RmpEntry()
    rmp.check_host_write(outside, PAGE_BYTES)
    with pytest.raises(RmpFault):
        rmp.check_guest_private(outside, 0, 1, 16)
    for spa, entry in ((outside, guest()), (-PAGE_BYTES, guest()), (8, guest()), (PAGE_BYTES, guest(large=True))):
        with pytest.raises(ValueError, match="spa"):
            rmp.set_entry(spa, entry)


def test_the_host_may_write_only_unassigned_pages() -> None:
    rmp = table((PAGE_BYTES, PAGE_BYTES, guest()))
    rmp.check_host_write(0, PAGE_BYTES)
    for spa, length in ((PAGE_BYTES, 1), (PAGE_BYTES - 1, 2), (0, 3 * PAGE_BYTES)):
        with pytest.raises(RmpFault) as caught:
            rmp.check_host_write(spa, length)
        assert caught.value.error == ERROR_PRESENT | ERROR_RMP | ERROR_WRITE


def test_sixty_four_gib_are_one_run() -> None:
    rmp = rmp_of(128 << 30)
    assert rmp.rmpupdate(0, 64 << 30, guest(large=True)) is RmpCode.SUCCESS
    assert rmp.pvalidate(0, 0, GuestCore(1), 64 << 30, large=True, validate=True) == (RmpCode.SUCCESS, False)
    assert len(rmp) == 1
    assert rmp.pages_of_asid(1) == (64 << 30) // PAGE_BYTES


class Model(RuleBasedStateMachine):
    """Random instructions against one plain entry per page."""

    addresses = st.integers(0, BLOCKS * PAGES - 1)
    lengths = st.sampled_from([1, 2, 3, 100, 512, 1024])
    gpas = st.sampled_from([0, 1, 7, 512, 1024, 4096])
    asids = st.integers(0, 2)

    @initialize()
    def start(self) -> None:
        self.rmp, self.dram = flat_rmp(BLOCKS * LARGE_PAGE_BYTES)
        self.pages = [RmpEntry() for _ in range(BLOCKS * PAGES)]

    @rule(
        page=addresses,
        count=lengths,
        large=st.booleans(),
        assigned=st.booleans(),
        immutable=st.booleans(),
        gpa=gpas,
        asid=asids,
    )
    def rmpupdate(
        self, page: int, count: int, large: bool, assigned: bool, immutable: bool, gpa: int, asid: int
    ) -> None:
        if large and page % 3:
            page, count = page // PAGES * PAGES, max(1, count // PAGES) * PAGES
        entry = RmpEntry(assigned=assigned, large=large, immutable=immutable, gpa=gpa * PAGE_BYTES, asid=asid)
        code = self.rmp.rmpupdate(page * PAGE_BYTES, count * PAGE_BYTES, entry)
        assert code == self.expected_update(page, count, entry)

    def expected_update(self, page: int, count: int, entry: RmpEntry) -> RmpCode:
        unit = PAGES if entry.large else 1
        gpa = entry.gpa // PAGE_BYTES
        if page % unit or count % unit or page + count > len(self.pages):
            return RmpCode.FAIL_INPUT
        if (not entry.assigned and (entry.asid or entry.immutable)) or (entry.asid and gpa % unit):
            return RmpCode.FAIL_INPUT
        if entry.assigned and not entry.asid and gpa:
            return RmpCode.FAIL_INPUT
        for first in range(page, page + count, unit):
            olds = self.pages[first : first + unit]
            if any(old.immutable for old in olds):
                return RmpCode.FAIL_PERMISSION
            if any(old.assigned and old.large != entry.large for old in olds):
                return RmpCode.FAIL_OVERLAP
            for number in range(first, first + unit):
                here = (gpa + number - page) * PAGE_BYTES if entry.asid else entry.gpa
                old = self.pages[number]
                if not entry.assigned:
                    self.pages[number] = RmpEntry()
                elif old.assigned and (old.asid, old.gpa) == (entry.asid, here):
                    self.pages[number] = replace(old, immutable=entry.immutable)
                else:
                    self.pages[number] = replace(entry, gpa=here, vmpl_permissions=ALL if entry.asid else (0, 0, 0, 0))
        return RmpCode.SUCCESS

    @rule(page=addresses)
    def psmash(self, page: int) -> None:
        code = self.rmp.psmash(page * PAGE_BYTES)
        if page % PAGES:
            assert code is RmpCode.FAIL_INPUT
        elif not (self.pages[page].assigned and self.pages[page].large):
            assert code is RmpCode.FAIL_NOT_LARGE
        elif self.pages[page].immutable:
            assert code is RmpCode.FAIL_PERMISSION
        else:
            assert code is RmpCode.SUCCESS
            for number in range(page, page + PAGES):
                self.pages[number] = replace(self.pages[number], large=False)

    @rule(
        page=addresses,
        count=lengths,
        large=st.booleans(),
        offset=st.sampled_from([0, 0, 0, 1]),
        asid=st.integers(1, 2),
        validate=st.booleans(),
    )
    def pvalidate(self, page: int, count: int, large: bool, offset: int, asid: int, validate: bool) -> None:
        if large:
            page, count = page // PAGES * PAGES, max(1, count // PAGES) * PAGES
        count = min(count, len(self.pages) - page)
        gpa = self.pages[page].gpa // PAGE_BYTES + offset
        unit = PAGES if large else 1
        expected: object = None
        unchanged = False
        if gpa % unit:
            expected = RmpCode.FAIL_INPUT
        for first in range(page, page + count, unit):
            if expected is not None:
                break
            for number in range(first, first + unit):
                old = self.pages[number]
                if (
                    not old.assigned
                    or old.asid != asid
                    or old.gpa != (gpa + number - page) * PAGE_BYTES
                    or old.immutable
                ) or (old.large and not large):
                    expected = "fault"
                elif large and not old.large:
                    expected = RmpCode.FAIL_SIZEMISMATCH
                if expected is not None:
                    break
                unchanged = unchanged or old.validated == validate
            else:
                for number in range(first, first + unit):
                    self.pages[number] = replace(self.pages[number], validated=validate)
        try:
            code, same = self.rmp.pvalidate(
                page * PAGE_BYTES, gpa * PAGE_BYTES, GuestCore(asid), count * PAGE_BYTES, large=large, validate=validate
            )
        except RmpFault:
            assert expected == "fault"
        else:
            assert code == (expected or RmpCode.SUCCESS)
            if code is RmpCode.SUCCESS:
                assert same == unchanged

    @rule(page=addresses, immutable=st.booleans(), validated=st.booleans(), vmsa=st.booleans())
    def firmware_sets(self, page: int, immutable: bool, validated: bool, vmsa: bool) -> None:
        old = self.pages[page]
        owned = old.asid > 0
        entry = replace(old, immutable=immutable, validated=validated and owned, vmsa=vmsa and owned, large=False)
        self.rmp.set_entry(page * PAGE_BYTES, entry)
        if old.large:
            for number in range(page // PAGES * PAGES, page // PAGES * PAGES + PAGES):
                self.pages[number] = replace(self.pages[number], large=False)
        self.pages[page] = entry

    @rule(block=st.integers(0, BLOCKS - 1), vmsa=st.booleans())
    def firmware_sets_large(self, block: int, vmsa: bool) -> None:
        first = block * PAGES
        entry = replace(guest(8 * MIB, large=True), vmsa=vmsa, validated=True, vmpl_permissions=ALL)
        self.rmp.set_entry(first * PAGE_BYTES, entry)
        for number in range(PAGES):
            self.pages[first + number] = replace(entry, gpa=8 * MIB + number * PAGE_BYTES)

    @rule(page=addresses)
    def somebody_looks(self, page: int) -> None:
        """From now on the bytes of these 2 MiB are what counts; the answers stay the same."""
        assert len(self.dram.read(self.rmp.layout.entry_spa(page), 16)) == 16

    @rule(page=addresses, asid=st.integers(1, 2), count=st.integers(1, 3))
    def access(self, page: int, asid: int, count: int) -> None:
        count = min(count, len(self.pages) - page)
        gpa = self.pages[page].gpa
        expected: type[Exception] | None = None
        for number in range(page, page + count):
            old = self.pages[number]
            if old.asid != asid or old.gpa != gpa + (number - page) * PAGE_BYTES or old.immutable or not old.assigned:
                expected = RmpFault
            elif not old.validated:
                expected = NotValidated
            if expected is not None:
                break
        spa, length = page * PAGE_BYTES, count * PAGE_BYTES
        if expected is None:
            self.rmp.check_guest_private(spa, gpa, asid, length)
        else:
            with pytest.raises(expected):
                self.rmp.check_guest_private(spa, gpa, asid, length)
        if any(one.assigned for one in self.pages[page : page + count]):
            with pytest.raises(RmpFault):
                self.rmp.check_host_write(spa, length)
        else:
            self.rmp.check_host_write(spa, length)

    @invariant()
    def entries_agree(self) -> None:
        for page in (0, 1, 2, 3, 7, 99, 100, 101, 511, 512, 513, 1023, 1024, 1535):
            assert self.rmp.entry(page * PAGE_BYTES) == self.pages[page], page
        for asid in (1, 2):
            expected = sum(one.assigned and one.asid == asid for one in self.pages)
            assert self.rmp.pages_of_asid(asid) == expected

    def teardown(self) -> None:
        for page, expected in enumerate(getattr(self, "pages", ())):
            assert self.rmp.entry(page * PAGE_BYTES) == expected, page


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
