"""Derived keys: the same selections give the same key, and whatever was selected and differs gives another."""

import dataclasses
import hashlib
import hmac
import struct

import pytest
from asking_guest import TCB, ask, running
from toy_machine import POLICY

from psp.guest_message import MessageType
from psp.installed_firmware import FirmwareLevel
from psp.key_messages import RootTcb
from psp.status import Status

GUEST = {"guest_svn": 5, "family_id": b"F" * 16, "image_id": b"I" * 16, "digest": b"D" * 48, "launch_mitigations": 3}


@dataclasses.dataclass(frozen=True)
class Asked:
    root: int = 0
    fields: int = 0
    vmpl: int = 0
    svn: int = 0
    tcb: int = 0
    mitigations: int | None = None
    reserved: int = 0

    def pack(self):
        head = struct.pack("<IIQIIQ", self.root, self.reserved, self.fields, self.vmpl, self.svn, self.tcb)
        return head if self.mitigations is None else head + struct.pack("<Q", self.mitigations)


def answered(machine, asked, vmpl=0):
    version = 1 if asked.mitigations is None else 2
    answer = ask(machine, MessageType.KEY_REQ, asked.pack(), vmpl, version)
    assert len(answer) == 0x40
    status = int.from_bytes(answer[:4], "little")
    assert bool(status) == (answer[0x20:] == bytes(32))
    assert answer[4:0x20] == bytes(28)
    return status, answer[0x20:]


def key(machine, asked=None, vmpl=0):
    status, found = answered(machine, asked or Asked(), vmpl)
    assert status == 0
    return found


@pytest.mark.parametrize(
    ("rooted", "fields", "root"),
    [
        (RootTcb.ASKED, 0x7F, TCB - 1), (RootTcb.ASKED, 0x5F, 0), (RootTcb.ASKED, 0, 0), (RootTcb.REPORTED, 0x7F, TCB),
        (RootTcb.REPORTED, 0, TCB),
    ],
)
def test_a_key_is_sp_800_108_of_the_endorsement_key_and_a_record(rooted, fields, root):
    machine = running(**GUEST)
    machine.psp.snp.derived_keys.root_tcb = rooted
    asked = Asked(0, fields, 1, 4, TCB - 1, 2)
    svn, tcb, policy, mitigations = (
        value if fields & 1 << bit else 0 for value, bit in ((4, 4), (TCB - 1, 5), (POLICY, 0), (2, 6))
    )
    named = b"I" * 16 + b"F" * 16 + b"D" * 48 if fields else bytes(80)
    record = struct.pack("<IIQIIQQ", 0, 0, fields, 1, svn, tcb, policy) + named
    record = (record + struct.pack("<Q", mitigations)).ljust(0x90, b"\0")
    scalar = machine.psp.legacy.keys.chip.vcek_key(root).private_numbers().private_value.to_bytes(48, "little")
    said = struct.pack("<I", 1) + b"gmsg-keyreq\0" + record + struct.pack("<I", 256)
    assert key(machine, asked) == hmac.digest(scalar, said, hashlib.sha256)


def test_the_same_selections_give_the_same_key_as_often_as_one_asks():
    machine = running(**GUEST)
    assert key(machine) == key(machine) == key(running(**GUEST))


CHANGES = {
    0: {"policy": POLICY | 1 << 19},
    1: {"image_id": b"i" * 16},
    2: {"family_id": b"f" * 16},
    3: {"digest": b"d" * 48},
}


@pytest.mark.parametrize("bit", CHANGES)
@pytest.mark.parametrize("selected", [False, True])
def test_a_fact_of_the_guest_changes_a_key_that_it_was_selected_for_and_no_other(bit, selected):
    asked = Asked(fields=1 << bit if selected else 0xF & ~(1 << bit))
    before, after = (key(running(**{**GUEST, **changes}), asked) for changes in ({}, CHANGES[bit]))
    assert (before != after) == selected


@pytest.mark.parametrize(("bit", "changes"), [(4, {"svn": 4}), (5, {"tcb": TCB}), (6, {"mitigations": 1})])
def test_a_version_that_the_request_names_counts_where_it_is_selected(bit, changes):
    machine, plain = running(**GUEST), Asked(mitigations=0)
    named = dataclasses.replace(plain, **changes)
    assert key(machine, plain) == key(machine, named)
    plain, named = (dataclasses.replace(one, fields=1 << bit) for one in (plain, named))
    assert key(machine, plain) != key(machine, named)


def test_each_selection_and_each_vmpl_is_a_key_of_its_own():
    machine = running(**GUEST)
    keys = {key(machine, Asked(fields=fields, vmpl=vmpl)) for fields in range(64) for vmpl in range(4)}
    assert len(keys) == 64 * 4


@pytest.mark.parametrize("vmpl", range(4))
@pytest.mark.parametrize("claimed", [0, 1, 2, 3, 4, 0xFFFF_FFFF])
def test_a_vmpl_has_its_own_keys_and_those_of_vmpls_below(vmpl, claimed):
    machine = running(**GUEST)
    status, found = answered(machine, Asked(vmpl=claimed), vmpl)
    if vmpl <= claimed <= 3:
        assert found == key(machine, Asked(vmpl=claimed)), "whoever asks for it"
    else:
        assert status == Status.INVALID_PARAM


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (Asked(root=8), Status.INVALID_PARAM),
        (Asked(root=3 << 1), Status.INVALID_PARAM),
        (Asked(root=2 << 1), Status.INVALID_KEY),
        (Asked(root=1), 0),
        (Asked(reserved=1), Status.INVALID_PARAM),
        (Asked(fields=1 << 6), Status.INVALID_PARAM),
        (Asked(fields=1 << 7, mitigations=0), Status.INVALID_PARAM),
        (Asked(fields=1 << 63), Status.INVALID_PARAM),
        (Asked(svn=6), Status.INVALID_PARAM),
        (Asked(svn=5), 0),
        (Asked(tcb=TCB + 1), Status.INVALID_PARAM),
        (Asked(tcb=TCB - 1), 0),
        (Asked(tcb=0x0000_0000_0000_0800), Status.INVALID_PARAM),
        (Asked(mitigations=4), Status.INVALID_PARAM),
        (Asked(mitigations=3), 0),
    ],
)
def test_what_a_guest_may_not_have_is_refused_inside_of_the_answer(asked, status):
    assert answered(running(**GUEST), asked)[0] == status


def test_the_committed_version_is_the_limit_component_by_component():
    machine = running(**GUEST)
    machine.psp.firmware.install(FirmwareLevel((1, 55, 41), TCB + 1))
    assert answered(machine, Asked(tcb=TCB + 1))[0] == Status.INVALID_PARAM


@pytest.mark.parametrize("rooted", RootTcb)
@pytest.mark.parametrize("fields", [0, 1 << 5])
def test_what_is_reported_is_part_of_the_root_by_a_switch_alone(rooted, fields):
    machine = running(**GUEST)
    machine.psp.snp.derived_keys.root_tcb = rooted
    first = key(machine, Asked(fields=fields, tcb=TCB - 1))
    machine.psp.firmware.report(TCB - 1)
    assert (key(machine, Asked(fields=fields, tcb=TCB - 1)) == first) == (rooted is RootTcb.ASKED)


@pytest.mark.parametrize("fields", [0, 1 << 5])
def test_a_key_outlives_a_commit_and_newer_firmware_opens_what_was_sealed_to_an_older_version(fields):
    machine = running(**GUEST)
    old, new = TCB, TCB + (1 << 48)
    sealed = key(machine, Asked(fields=fields, tcb=old))
    machine.psp.firmware.install(FirmwareLevel((1, 55, 41), new))
    assert key(machine, Asked(fields=fields, tcb=old)) == sealed
    assert answered(machine, Asked(fields=fields, tcb=new))[0] == Status.INVALID_PARAM, "nothing is sealed to it yet"
    machine.psp.firmware.commit()
    assert key(machine, Asked(fields=fields, tcb=old)) == sealed
    assert (key(machine, Asked(fields=fields, tcb=new)) == sealed) == (fields == 0)


def test_another_chip_is_another_root():
    first = key(running(**GUEST))
    another = running(**GUEST)
    another.psp.legacy.keys.chip.draw = lambda: bytes(32)
    another.psp.legacy.keys.chip._fuses = b""
    another.psp.legacy.keys.chip._vceks.clear()
    assert key(another) != first


def test_who_waits_for_a_root_of_its_migration_agent_has_none():
    assert answered(running(**GUEST, vmrk=bytes(32)), Asked(root=1))[0] == Status.INVALID_KEY


def test_what_a_migration_agent_gave_is_a_root_that_no_chip_has_part_in():
    roots = [key(running(**GUEST, vmrk=bytes([one]) * 32), Asked(root=1)) for one in (1, 2)]
    assert len({*roots, key(running(**GUEST))}) == 3
    moved = running(**GUEST, vmrk=b"\1" * 32)
    moved.psp.firmware.report(TCB - 1)
    assert key(moved, Asked(root=1)) == roots[0]
