"""A mailbox takes one object at a time, word by word, and an error stays until it is aborted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.card import Card
from tio.device_identity import CardKind
from tio.doe import DataObject, DoeError, ObjectType, discovery_request, parse_discovery_response
from tio.loose_device import LooseDevice
from tio.pci import DoeMailbox, MailboxControl, MailboxRegister, MailboxStatus
from tio.pci.doe_mailbox import exchange
from tio.spdm import PCI_DOE, Requester, RequesterSettings, TrustAnchors

R, S = MailboxRegister, MailboxStatus
SPDM = ObjectType.CMA_SPDM


def echoing(**more):
    return DoeMailbox((SPDM,), lambda asked: DataObject(1, SPDM, asked.payload[::-1]), largest_bytes=64, **more)


def write(mailbox, data):
    for at in range(0, len(data), 4):
        mailbox.store(R.WRITE_DATA, int.from_bytes(data[at : at + 4], "little"))


def test_an_object_goes_in_and_its_answer_comes_out():
    mailbox = echoing()
    found = exchange(mailbox.load, mailbox.store, DataObject(1, SPDM, b"abcdefgh"))
    assert found == DataObject(1, SPDM, b"hgfedcba")
    assert mailbox.load(R.STATUS) == 0
    assert mailbox.load(R.READ_DATA) == 0


def test_discovery_lists_what_it_speaks_and_other_objects_are_dropped():
    mailbox = echoing()
    answer = exchange(mailbox.load, mailbox.store, discovery_request(1))
    protocol, following = parse_discovery_response(answer)
    assert (protocol.object_type, following) == (SPDM, 0)
    for strange in (DataObject(1, ObjectType.SECURED_CMA_SPDM, b""), DataObject(0x1E98, SPDM, b"")):
        assert exchange(mailbox.load, mailbox.store, strange) is None
        assert not mailbox.load(R.STATUS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        b"\x01\0\x01\0\x03\0\0\0",
        b"\x01\0\x01\0\x01\0\0\0",
        b"\x01\0\x01\0\x02\0\0\0" + bytes(4),
        bytes(68),
    ],
    ids=["nothing", "half a header", "shorter than it says", "too short to be", "longer than it says", "too long"],
)
def test_an_object_that_is_none_is_an_error_until_it_is_aborted(data):
    mailbox = echoing()
    write(mailbox, data)
    mailbox.store(R.CONTROL, MailboxControl.GO)
    assert mailbox.load(R.STATUS) == S.ERROR
    with pytest.raises(DoeError):
        exchange(mailbox.load, mailbox.store, DataObject(1, SPDM, b"abcd"))
    # The driver aborted it.
    assert exchange(mailbox.load, mailbox.store, DataObject(1, SPDM, b"abcd")).payload == b"dcba"


def test_an_object_that_is_whole_but_longer_than_the_mailbox_is_an_error():
    mailbox = echoing()
    fits, longer = (DataObject(1, SPDM, bytes(size - 8)) for size in (64, 68))
    assert len(longer.pack()) == 68
    with pytest.raises(DoeError):
        exchange(mailbox.load, mailbox.store, longer)
    assert exchange(mailbox.load, mailbox.store, fits) == fits


def test_who_asks_before_taking_the_answer_gets_none_of_it():
    mailbox = echoing()
    for _ in range(2):
        write(mailbox, DataObject(1, SPDM, b"abcd").pack())
        mailbox.store(R.CONTROL, MailboxControl.GO)
    assert mailbox.load(R.STATUS) == S.ERROR
    assert mailbox.load(R.READ_DATA) == 0


def test_the_host_is_told_if_it_wants_to_be():
    told = []
    mailbox = echoing(interrupt=lambda: told.append(1))
    packed = DataObject(1, SPDM, b"abcd").pack()
    write(mailbox, packed)
    mailbox.store(R.CONTROL, MailboxControl.GO | MailboxControl.INTERRUPT_ENABLE)
    assert mailbox.load(R.STATUS) == S.READY | S.INTERRUPT
    mailbox.store(R.STATUS, S.INTERRUPT)
    assert mailbox.load(R.STATUS) == S.READY
    mailbox.store(R.CONTROL, MailboxControl.ABORT)
    write(mailbox, packed)
    mailbox.store(R.CONTROL, MailboxControl.GO)
    assert mailbox.load(R.STATUS) == S.READY
    assert told == [1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 4, 8, 12, 16, 20]), st.integers(0, (1 << 32) - 1)), max_size=60))
def test_no_order_of_stores_breaks_it(stores):
    mailbox = echoing()
    for offset, value in stores:
        mailbox.store(offset, value)
        assert 0 <= mailbox.load(offset) < 1 << 32
    mailbox.store(R.CONTROL, MailboxControl.ABORT)
    assert exchange(mailbox.load, mailbox.store, DataObject(1, SPDM, b"abcd")).payload == b"dcba"


def test_a_card_is_attested_through_its_configuration_space():
    card = Card(CardKind.NVME, LooseDevice(), lambda count: bytes(range(count)), programmed=True)
    at = card.space.extended_at(card.mailbox)
    assert card.space.read(at, 2) == 0x2E
    one = Requester(RequesterSettings(anchors=TrustAnchors((card.identity.root,))), PCI_DOE, lambda n: b"\x07" * n)

    def carried(steps):
        try:
            packet = next(steps)
            while True:
                wrapped = PCI_DOE.wrap(packet)
                asked = DataObject(1, wrapped[2], wrapped[8:])
                found = exchange(
                    lambda offset: card.space.read(at + offset),
                    lambda offset, value: card.space.write(at + offset, value),
                    asked,
                )
                packet = steps.send(PCI_DOE.unwrap(found.pack()))
        except StopIteration as end:
            return end.value

    carried(one.connect())
    carried(one.digests())
    carried(one.certificates())
    carried(one.challenge())
    session = carried(one.open_session())
    assert carried(one.measurements(slot=0, session=session))
    carried(one.end_session(session))
