"""Whatever somebody puts on the wire: cards and root ports answer or drop it, and trusted memory holds what it did."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from slot import BARS, CARD, DATA, STREAM, Slot, running

from tio.dma_port import DmaFault
from tio.ide import IdeTlp, Packet, SubStream, Tlp, TlpKind, Way
from tio.ide.prefix import IdePrefix
from tio.tdisp import TdiState

MEMORY_AT = BARS[2]
_SIZES = {kind: 12 if kind in (0x04, 0x44, 0x0A, 0x4A) else 16 for kind in TlpKind}
ADDRESSES = st.sampled_from((MEMORY_AT, BARS[0] + 0x14, BARS[4], DATA, 0x2000, (1 << 64) - 4, 0xFFC))


@st.composite
def plain(draw) -> Tlp:
    """A packet whose header is nearly right."""
    kind = draw(st.sampled_from([*TlpKind, 0xFF]))
    dwords = draw(st.sampled_from((1, 2, 64)))
    head = bytearray(bytes((kind, 0)) + dwords.to_bytes(2, "big"))
    head += draw(st.sampled_from((CARD, CARD + 1, 0x0018, 0))).to_bytes(2, "big")
    head += bytes((draw(st.integers(0, 3)), draw(st.sampled_from((0x0F, 0xFF, 0x00, 0x05, 0x1E, 0xA5)))))
    head += draw(ADDRESSES).to_bytes(8, "big")
    for at, octet in draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 255)), max_size=2)):
        head[at] = octet
    header = bytes(head)[: draw(st.sampled_from((_SIZES.get(kind, 16),) * 6 + (0, 3, 11)))]
    payload = draw(st.sampled_from((bytes(4 * dwords) if kind & 0x40 else b"", b"evil" * dwords, b"odd")))
    return Tlp(header, payload)


@st.composite
def protected(draw) -> IdeTlp:
    """The same with a prefix as somebody without keys could make it."""
    one = draw(plain())
    prefix = IdePrefix(
        draw(st.sampled_from((STREAM, STREAM, 9))), draw(st.integers(0, 7)), draw(st.booleans()),
        draw(st.integers(0, 1)), draw(st.booleans()), draw(st.integers(0, 255)),
    ).pack()  # fmt: skip
    return IdeTlp(draw(st.sampled_from((prefix, prefix, b"", b"\xff" * 4))), one.header, one.payload, bytes(12))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Way), st.one_of(plain(), plain(), protected())), min_size=1, max_size=6),
    st.booleans(),
)
def test_nothing_on_the_wire_is_an_error_of_anybody_but_who_put_it_there(
    packets: list[tuple[Way, Packet]], trusted: bool
) -> None:
    slot = running() if trusted else Slot()
    slot.gpu.memory[0x800:0x808] = 5
    for way, packet in packets:
        slot.link.injected[way].append(packet)
    slot.root.store(MEMORY_AT + 0x900, 1, 4, tee=trusted)
    loaded = slot.root.load(MEMORY_AT + 0x800, 8, tee=trusted)
    with suppress(DmaFault):
        slot.dma.write(DATA + 0x8000, b"mine" * 100)
    with suppress(DmaFault):
        slot.dma.read(DATA, 600)
    if trusted:
        # Nobody without keys changed or read what is trusted, whatever else broke.
        assert loaded in (int.from_bytes(bytes([5]) * 8, "little"), (1 << 64) - 1)
        assert all(one.stream_id is None for one in slot.memory.log if not one.tee)
        trusted_writes = [one for one in slot.memory.log if one.tee and one.write]
        assert all(one.address >= DATA + 0x8000 for one in trusted_writes)
        if slot.card.tdi.state is TdiState.RUN:
            assert (slot.gpu.memory[0x800:0x808] == 5).all()
            assert not slot.gpu.memory[:0x800].any()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(plain(), protected()), max_size=5))
def test_whatever_a_card_sends_a_root_port_takes_or_refuses(packets: list[Packet]) -> None:
    """The same from inside of the slot, by a card that is somebody else's."""
    slot = running()
    answers = slot.card.upstream(list(packets))
    for one in answers:
        assert isinstance(one, Tlp | IdeTlp)
        if isinstance(one, Tlp):
            assert one.checked().sub_stream in (SubStream.CPL, SubStream.PR)
    assert all(not one.tee for one in slot.memory.log)
