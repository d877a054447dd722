"""Stack engines: RSP is right unless the core's other thread stops the engine, and then all changes come at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core_msrs import STACK_ENGINE_OFF, Msr
from node.msrs_at_reset import msrs_at_reset
from node.platform import AS_USUAL
from node.product import PRODUCTS
from node.rmp import ProtectionFault
from node.stack_engine import StackEngines

RSP = 0x7000


def engines(threads_per_core: int = 2, *, fixed: bool = False):
    msrs = msrs_at_reset(PRODUCTS["Milan"], AS_USUAL, None, 1 << 30)
    return msrs, StackEngines(msrs, threads_per_core, fixed=fixed)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([-16, -8, 8, 24]), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_what_a_stop_holds_back_comes_with_the_first_move_after_it(moves, first, stopped) -> None:
    msrs, engine = engines()
    rsp = RSP
    for number, by in enumerate(moves):
        off = first <= number < first + stopped
        msrs.write(1, Msr.DE_CFG, STACK_ENGINE_OFF if off else 0)
        rsp = engine.moved(0, rsp, by)
        assert rsp == RSP + sum(moves[:first] if off else moves[: number + 1])


@pytest.mark.parametrize(
    ("writer", "threads_per_core", "fixed", "stops"),
    [(1, 2, False, True), (0, 2, False, False), (2, 2, False, False), (1, 1, False, False), (1, 2, True, False)],
    ids=["other thread", "own thread", "another core", "no SMT", "microcode"],
)
def test_only_the_other_thread_of_the_core_stops_it(writer, threads_per_core, fixed, stops) -> None:
    msrs, engine = engines(threads_per_core, fixed=fixed)
    msrs.write(writer, Msr.DE_CFG, STACK_ENGINE_OFF)
    assert (engine.moved(0, RSP, 8) == RSP) is stops


def test_each_thread_has_its_own_and_rsp_is_a_register() -> None:
    msrs, engine = engines()
    msrs.write(1, Msr.DE_CFG, STACK_ENGINE_OFF)
    engine.moved(0, RSP, 8)
    assert engine.moved(4, RSP, 8) == RSP + 8
    msrs.write(1, Msr.DE_CFG, 0)
    assert engine.moved(1, RSP, 8) == RSP + 8
    assert engine.moved(0, (1 << 64) - 8, 8) == 8
    assert engine.moved(0, 0, -8) == (1 << 64) - 8


def test_reserved_bits_of_de_cfg_are_refused() -> None:
    msrs, _ = engines()
    with pytest.raises(ProtectionFault):
        msrs.write(1, Msr.DE_CFG, 1 << 20)
    assert msrs.read(1, Msr.DE_CFG) == 0
