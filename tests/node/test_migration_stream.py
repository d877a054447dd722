"""What a target takes for a VM: one stream, of this move, for this host, whole and once; nothing else.

The table is that of ``negative-tests``, section "Migration stream", as far as frames of pages go.
"""

import dataclasses

import msgpack
import pytest
from test_departures_and_arrivals import leftovers, place, stopped, until
from toy_guests import SECOND, make_host, run, start

from node.generation import Generation
from node.guest import GuestState
from node.migration_frames import FrameKind, frames_of, page_digests, session_of
from node.packing import packed

PLAIN = Generation.PLAIN
UNITS = 30
NUMBER = 7
OURS = session_of(NUMBER, "vm", "here", "there")


@pytest.fixture(scope="module")
def sent():
    """A stopped VM, its digests and books, and a VM of the same name that was stopped a little later."""
    here = make_host(name="here")
    start(here, "vm", PLAIN, "ledger", units=UNITS)
    run(here, 2_000_000)
    found = []
    for _ in range(2):
        here.departures.begin("vm", lambda _: None)
        found.append(stopped(here, "vm"))
        here.departures.cancel("vm")
        run(here, here.now_ns + 500_000)
    return found


@pytest.fixture(scope="module")
def target(sent):
    """A host that awaits the VM."""
    there = make_host(name="there")
    spec = dataclasses.replace(guest_of(there), name="vm")
    assert place(there, spec) is None
    return there


def guest_of(host):
    """The specification of such a VM."""
    other = make_host()
    return start(other, "vm", PLAIN, "ledger", units=UNITS).spec


def reframed(frame, **changes):
    """A frame with other fields."""
    names = ("version", "session", "sequence", "kind", "length", "checksum", "body")
    fields = dict(zip(names, msgpack.unpackb(frame, use_list=False), strict=True)) | changes
    return packed(tuple(fields[name] for name in names))


def resigned(frame, session=OURS, **changes):
    """The same, by somebody who knows the format: with its right checksum and length."""
    from node.migration_frames import _checksum

    _, _, sequence, kind, _, _, body = msgpack.unpackb(frame, use_list=False)
    values = {"sequence": sequence, "kind": kind, "body": body} | changes
    checksum = _checksum(session, values["sequence"], values["kind"], values["body"])
    return reframed(frame, session=session, length=len(values["body"]), checksum=checksum, **values)


def moved(frames, number, gpa_by):
    """Frames in which a page lies elsewhere."""
    body = msgpack.unpackb(msgpack.unpackb(frames[number], use_list=False)[6], use_list=False)
    ((gpa, data), *rest) = body
    forged = resigned(frames[number], body=packed(((gpa + gpa_by, data), *rest)))
    return (*frames[:number], forged, *frames[number + 1 :])


def pages_at(frames):
    """The number of the first frame of pages."""
    kinds = [msgpack.unpackb(frame, use_list=False)[3] for frame in frames]
    return kinds.index(FrameKind.PAGES)


BAD = {
    "truncated inside a frame": (lambda f, _: (*f[:-1], f[-1][:-3]), "frame: expected"),
    "cut after a frame": (lambda f, _: f[:-1], "kind: expected a further frame"),
    "no frame at all": (lambda _, __: (), "kind: expected a further frame"),
    "a frame twice": (lambda f, _: (*f[:2], *f[1:]), "sequence: expected"),
    "two frames swapped": (lambda f, _: (f[0], f[2], f[1], *f[3:]), "sequence: expected"),
    "two frames that changed numbers": (
        lambda f, _: (f[0], reframed(f[2], sequence=1), reframed(f[1], sequence=2), *f[3:]), "checksum: expected"),
    "a frame left out": (lambda f, _: (*f[:1], *f[2:]), "sequence: expected"),
    "more after the end": (lambda f, _: (*f, f[-1]), "sequence: expected"),
    "more after the end, numbered on": (
        lambda f, _: (*f, resigned(f[-1], sequence=len(f))), "kind: expected a head first and nothing after the end"),
    "another version": (lambda f, _: (reframed(f[0], version=1), *f[1:]), "version: expected 3, got 1"),
    "another length": (lambda f, _: (reframed(f[0], length=1), *f[1:]), "length: expected 1"),
    "another checksum": (lambda f, _: (reframed(f[0], checksum=bytes(32)), *f[1:]), "checksum: expected"),
    # Both hold runs, so that nothing but the checksum tells them apart.
    "pages that are said to be blocks": (
        lambda f, _: tuple(
            reframed(one, kind=FrameKind.BLOCKS) if number == pages_at(f) else one for number, one in enumerate(f)
        ),
        "checksum: expected that of the body"),
    "a page outside the VM": (lambda f, _: moved(f, pages_at(f), 1 << 40), "gpa: expected whole pages of the VM"),
    "a page at no page's address": (lambda f, _: moved(f, pages_at(f), 8), "gpa: expected whole pages of the VM"),
    "another VM's": (
        lambda f, _: (resigned(f[0], body=packed(("other", (True,), (), (0,), (1, 0)))), *f[1:]), "vm: expected vm"),
    "more vCPUs": (
        lambda f, _: (resigned(f[0], body=packed(("vm", (True,) * 2, (), (0, 0), (1, 0)))), *f[1:]),
        "vcpus: expected 1"),
    "an older stop's frames after the head": (lambda f, old: (f[0], *old[1:]), None),
    "a stream of another move": (lambda f, _: tuple(
        resigned(one, session=session_of(NUMBER - 1, "vm", "here", "there")) for one in f), "session: expected"),
    "a stream of another source": (lambda f, _: tuple(
        resigned(one, session=session_of(NUMBER, "vm", "elsewhere", "there")) for one in f), "session: expected"),
    "a stream to another host": (lambda f, _: tuple(
        resigned(one, session=session_of(NUMBER, "vm", "here", "elsewhere")) for one in f), "session: expected"),
    "one frame of another session": (
        lambda f, _: (*f[:2], resigned(f[2], session=bytes(16)), *f[3:]), "session: expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_stream_that_is_not_this_move_s_is_refused_by_field_and_changes_nothing(name, sent, target):
    change, line = BAD[name]
    old, new = sent
    frames, older = frames_of(new.state, OURS), frames_of(old.state, OURS)
    before = leftovers(target)
    told = []
    spoiled = change(frames, older)
    target.arrivals.complete("vm", spoiled, page_digests(new.state.pages), new.books, told.append, OURS)
    until(lambda: told, target)
    assert told[0] is not None
    if line is None:
        # Every frame is genuine; what was written since is not in them.
        assert "page" in told[0]
        return
    assert line in told[0]
    assert target.guests["vm"].state is GuestState.ARRIVING
    assert leftovers(target) == before


def test_the_stream_that_is_this_move_s_is_taken_whole_and_its_vm_works_on(sent):
    there = make_host(name="there")
    _, new = sent
    frames = frames_of(new.state, OURS)
    assert place(there, guest_of(there)) is None
    told = []
    there.arrivals.complete("vm", frames, page_digests(new.state.pages), new.books, told.append, OURS)
    until(lambda: told, there)
    assert told == [None]
    there.arrivals.start("vm")
    run(there, there.now_ns + SECOND)
    assert there.guests["vm"].state is GuestState.RUNNING
    assert there.guests["vm"].vcpus[0].registers.r13 == UNITS
