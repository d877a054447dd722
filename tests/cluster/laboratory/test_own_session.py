"""A hypervisor's own session with the victim's device opens, is heard, and gets nothing; the victim goes on."""

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD, Scene, Setting
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from tio.device_security_module import ProtocolId
from tio.ide import StreamState
from tio.tdisp import InterfaceId, TdiState
from workloads.attacks.own_session import OwnSession
from workloads.attacks.target import LET_IT_RUN
from workloads.attacks.tdisp_misuse import asked, keys_of_its_own, misuses, opened

TIO = Setting(Column.SEV_TIO, "Turin", victim="depositor", cards=(OWN_CARD, OTHER_CARD))


def codes(errors):
    return [error.split(":")[0] for error in errors]


def test_a_second_session_is_answered_with_errors_and_changes_nothing():
    scene, said = Scene(TIO, Ledger(), Transcript()), {}

    def attack(target):
        own = yield from opened(target)
        stream = target.device.given.card.stream_id
        wrong = misuses(InterfaceId(target.device.function.requester), stream)
        said["before"] = yield from asked(own, ProtocolId.TDISP, wrong)
        yield LET_IT_RUN
        said["tdisp"] = yield from asked(own, ProtocolId.TDISP, wrong)
        said["keys"] = yield from asked(own, ProtocolId.IDE_KM, keys_of_its_own(stream))
        yield LET_IT_RUN

    scene.play(attack)
    # While nobody has locked it: no report, no lock without keys, no start; a stop does nothing.
    assert codes(said["before"]) == ["INVALID_INTERFACE_STATE", "INVALID_REQUEST", "INVALID_INTERFACE_STATE", ""]
    # Of what another session has locked only a lock is asked for its state.
    assert codes(said["tdisp"]) == ["INVALID_REQUEST", "INVALID_INTERFACE_STATE", "INVALID_REQUEST", "INVALID_REQUEST"]
    assert [error.split(" of ")[0] for error in said["keys"][:2]] == ["KEY_PROG"] * 2
    assert [error.split(":")[0] for error in said["keys"][2:]] == ["VENDOR_DEFINED"] * 2, "GO and STOP have no answer"
    slot = scene.host.board.slots.by_port[OWN_CARD.port]
    assert slot.card.tdi.state is TdiState.RUN
    assert {one.state for one in slot.root_port.port.streams.values()} == {StreamState.SECURE}
    assert scene.host.guests["victim"].vcpus[0].registers.r13 == 3


def test_keys_from_a_session_of_before_are_gone_when_the_firmware_has_connected():
    scene, said = Scene(TIO, Ledger(), Transcript()), []

    def attack(target):
        own = OwnSession(target, [])
        yield from own.open()
        said.extend((yield from asked(own, ProtocolId.IDE_KM, keys_of_its_own(1)[:3])))
        yield LET_IT_RUN
        yield LET_IT_RUN

    scene.play(attack)
    assert said == ["", "", ""], "nobody else had the device yet"
    slot = scene.host.board.slots.by_port[OWN_CARD.port]
    assert {one.state for one in slot.root_port.port.streams.values()} == {StreamState.SECURE}
    victim = scene.host.guests["victim"]
    assert (victim.vcpus[0].registers.r13, victim.faults) == (3, 0)
