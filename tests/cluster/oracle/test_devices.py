"""What the judge makes of a victim's own device: what it is handed, what it writes, and what firmware asks of it."""

from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.actor import HYPERVISOR, Actor, Role
from node.operations import Copy, HostRead, PspAnswer, PspCommand, Read, Write
from psp.status import Status
from tio.ide.link import Way
from workloads.attacks.slot_operations import LinkPacket

VICTIM, LINK = Actor(Role.GUEST, "victim"), Actor(Role.LINK, "payloads")
CANARY = bytes(range(0x40, 0x80))
PRIVATE, RING, POOL, SHOP_WINDOW = 0x20_0000, 0x20_1000, 0x200_0000, 0x201_0000


def outcome(*steps: tuple[Actor, object, object]) -> Outcome:
    book = Ledger()
    book.keep("victim", "canary", CANARY)
    book.entrust("victim", POOL, 4096)
    book.let_devices_write("victim", RING, 4096)
    transcript = Transcript()
    for actor, operation, answer in ((VICTIM, Write(PRIVATE, CANARY), None), *steps):
        transcript.observe(actor, (operation,), (answer,))
    return judge(book, transcript).outcome


SEEN = (HYPERVISOR, HostRead(0, 64), CANARY)


def test_what_is_handed_to_a_device_is_not_published() -> None:
    assert outcome((VICTIM, Write(POOL, CANARY, private=False), None), SEEN) is Outcome.LEAKED
    assert outcome((VICTIM, Write(SHOP_WINDOW, CANARY, private=False), None), SEEN) is Outcome.BLOCKED
    # Half of it lies beside the pool, where everybody may look.
    assert outcome((VICTIM, Write(POOL + 4096 - 32, CANARY, private=False), None), SEEN) is Outcome.BLOCKED


def test_nor_is_what_is_copied_there() -> None:
    for target, expected in ((POOL, Outcome.LEAKED), (SHOP_WINDOW, Outcome.BLOCKED)):
        copied = (VICTIM, Copy(PRIVATE, target, 64, source_private=True, target_private=False), CANARY)
        assert outcome(copied, SEEN) is expected


def test_what_its_device_writes_a_victim_need_not_have_written() -> None:
    for gpa, expected in ((RING, Outcome.BLOCKED), (PRIVATE, Outcome.CORRUPTED)):
        lived = (VICTIM, Write(gpa, bytes(64)), None), (VICTIM, Read(gpa, 64), b"\1" * 64)
        assert outcome(*lived, (HYPERVISOR, HostRead(0, 1), b"")) is expected


def test_what_crosses_a_link_in_pieces_is_joined() -> None:
    pieces = [(LINK, LinkPacket(1, Way.UP), CANARY[at : at + 4]) for at in range(0, 64, 4)]
    assert outcome(*pieces) is Outcome.LEAKED
    assert outcome(*pieces[:3]) is Outcome.BLOCKED


def test_that_firmware_wants_something_carried_is_no_refusal() -> None:
    for status, evidence in ((Status.SPDM_REQUEST, "nothing"), (Status.IN_USE, "PspCommand")):
        transcript, book = Transcript(), Ledger()
        book.keep("victim", "canary", CANARY)
        transcript.observe(HYPERVISOR, (PspCommand(0xDC, 0, b""),), (PspAnswer(int(status), b""),))
        assert judge(book, transcript).evidence.startswith(evidence)
