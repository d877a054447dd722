"""Any order of agents' messages on two hosts against a small model: who may ask what, and who is there afterwards."""

import struct
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from migrating_guests import (
    AGENT,
    CONTENTS,
    IMI_EN,
    IMI_PAGE,
    MA_EN,
    MOVABLE,
    OTHER,
    POLICY,
    VALID_ROOT,
    agents,
    ask,
    brought,
    fresh,
    launched,
    status_of,
)
from toy_machine import GCTX, PAGE, Machine, change_context, context

from psp.guest_context import SnpGuestState
from psp.guest_message import MessageType
from psp.status import Status

M = MessageType
EMPTY = GCTX + 3 * PAGE
PLACES = (GCTX, AGENT, OTHER, EMPTY)
ABSENT, INIT = "absent", "init"


@dataclass(frozen=True)
class Guest:
    """What of a guest decides about messages. ``who`` is whose identity it has, ``agent`` who speaks for it."""

    who: str
    agent: str
    movable: bool
    image: str = ""
    is_image: bool = False
    out: bool = False


@dataclass(frozen=True)
class Blob:
    guest: Guest
    octets: bytes


def world():
    """Two hosts: an agent, a guest with an image that it serves, one on its own with the same image, and a place."""
    machines = agents()
    models = []
    for name, machine in zip(("source", "target"), machines, strict=True):
        pages = [(CONTENTS[0], IMI_PAGE)]
        launched(machine, GCTX, MOVABLE, AGENT, MA_EN | IMI_EN, pages)
        launched(machine, OTHER, MOVABLE if name == "target" else POLICY, flags=IMI_EN, pages=pages)
        fresh(machine, EMPTY)
        change_context(machine, GCTX, root_mdata=VALID_ROOT)
        agent = f"{name} agent"
        models.append({
            GCTX: Guest(f"{name} guest", agent, movable=True, image="image", is_image=True, out=True),
            AGENT: Guest(agent, "", movable=False),
            OTHER: Guest(f"{name} other", "", movable=name == "target", image="image", is_image=True),
            EMPTY: INIT,
        })  # fmt: skip
    return machines, models


MACHINES, MODELS = world()
KEPT = [dict(machine.bus.pages) for machine in MACHINES], [dict(machine.bus.rmp) for machine in MACHINES]
STATE = [(dict(m.psp.snp.guests.pages.spas), set(m.psp.snp.guests._active), dict(m.bus.keys)) for m in MACHINES]


def begin_again():
    for machine, pages, rmp, (spas, active, keys) in zip(MACHINES, *KEPT, STATE, strict=True):
        machine.bus.pages, machine.bus.rmp, machine.bus.keys = dict(pages), dict(rmp), dict(keys)
        machine.psp.snp.guests.pages.spas = dict(spas)
        machine.psp.snp.guests._active = set(active)
    return [dict(model) for model in MODELS]


def expected(model, blobs, step):
    """Status, and the model afterwards with what was exported."""
    kind, asking, place, flag, which = step
    asker, target = model[asking], model.get(place, ABSENT)
    serves = isinstance(target, Guest) and target.agent == asker.who != ""
    if kind is M.EXPORT_REQ:
        alone = place == asking and not asker.agent
        if not (alone or serves):
            return Status.INVALID_PARAM, model, None
        if flag:
            return 0, model, replace(target, out=False)
        return 0, {**model, place: ABSENT}, target
    if kind is M.VMRK_REQ:
        return (0 if serves else Status.INVALID_PARAM), model, None
    if not blobs:
        return None, model, None
    guest = blobs[which % len(blobs)].guest
    if kind is M.IMPORT_REQ:
        if target != INIT or not guest.out:
            return Status.INVALID_PARAM, model, None
        if not guest.movable or asker.movable:
            return Status.POLICY_FAILURE, model, None
        return 0, {**model, place: replace(guest, agent=asker.who, is_image=False)}, None
    if kind is M.ABSORB_NOMA_REQ:
        place, target, serves = asking, asker, not flag and not asker.agent
        if serves and not asker.movable:
            return Status.POLICY_FAILURE, model, None
    if not serves or not target.is_image:
        return Status.INVALID_PARAM, model, None
    if guest.image != target.image:
        return Status.BAD_MEASUREMENT, model, None
    if guest.movable != target.movable:
        return Status.POLICY_FAILURE, model, None
    return 0, {**model, place: replace(target, who=guest.who, is_image=False)}, None


def payload(blobs, step):
    kind, _, place, flag, which = step
    if kind is M.EXPORT_REQ:
        return struct.pack("<QQ", place, flag)
    if kind is M.VMRK_REQ:
        return struct.pack("<Q24x32s", place, b"R" * 32)
    octets = blobs[which % len(blobs)].octets
    return brought(place * flag if kind is M.ABSORB_NOMA_REQ else place, octets)


likely = st.tuples(st.integers(0, 1), st.sampled_from([
    (M.EXPORT_REQ, AGENT, GCTX, 0), (M.EXPORT_REQ, AGENT, GCTX, 1), (M.EXPORT_REQ, OTHER, OTHER, 1),
    (M.IMPORT_REQ, AGENT, EMPTY, 0), (M.IMPORT_REQ, AGENT, EMPTY, 0), (M.ABSORB_REQ, AGENT, GCTX, 0),
    (M.ABSORB_NOMA_REQ, OTHER, OTHER, 0), (M.EXPORT_REQ, AGENT, EMPTY, 0),
]), st.integers(0, 3)).map(lambda one: (one[0], *one[1], one[2]))  # fmt: skip
"""What agents do for a living."""
anything = st.tuples(
    st.integers(0, 1),
    st.sampled_from([M.EXPORT_REQ, M.EXPORT_REQ, M.IMPORT_REQ, M.ABSORB_REQ, M.ABSORB_NOMA_REQ, M.VMRK_REQ]),
    st.sampled_from([AGENT, AGENT, GCTX, OTHER, EMPTY]),
    st.sampled_from(PLACES),
    st.integers(0, 1),
    st.integers(0, 3),
)


def holds(machine: Machine, model):
    for place, guest in model.items():
        there = place in machine.psp.snp.guests.pages.spas
        assert there == (guest != ABSENT)
        if there:
            state = context(machine, place).state
            assert state == (SnpGuestState.INIT if guest == INIT else SnpGuestState.RUNNING)


@settings(max_examples=60, deadline=None)
@given(st.lists(likely | anything, max_size=16))
def test_firmware_answers_as_the_model_and_nobody_is_there_who_should_not(orders):
    models, blobs = begin_again(), []
    for number, *step in orders:
        machine, model = MACHINES[number], models[number]
        asking = step[1]
        if not isinstance(model[asking], Guest):
            continue
        status, after, exported = expected(model, blobs, step)
        if status is None:
            continue
        answer = ask(machine, asking, step[0], payload(blobs, step))
        assert status_of(answer) == status, (step, model)
        models[number] = after
        if exported is not None:
            assert len(answer) == 0x320
            blobs.append(Blob(exported, answer[0x20:]))
        for one, expected_there in zip(MACHINES, models, strict=True):
            holds(one, expected_there)
