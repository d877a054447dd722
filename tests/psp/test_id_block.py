"""ID blocks as sev-snp-measure makes them are taken; anything else in their place is refused and changes nothing."""

import base64
import hashlib
import re

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from sevsnpmeasure.id_block import snp_calc_id_block
from toy_machine import COMMAND_PAGE, GCTX, POLICY, context, pre_guest, snp_guest, up, update

from psp import command_buffers as buffers
from psp import elliptic
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.id_block import IdAuth, IdBlock
from psp.status import Status

BLOCK_AT, AUTH_AT = 0x70_0000, 0x70_1000
ID_KEY, AUTHOR_KEY = (elliptic.private_key(bytes([n]) * 56) for n in (1, 2))


def launched():
    machine = snp_guest(up())
    pre_guest(machine, b"\x33" * 4096)
    assert update(machine) == Status.SUCCESS
    return machine


def ours(digest, policy=POLICY):
    """Block and auth by our own signing."""
    block = IdBlock(digest, b"family".ljust(16), b"image".ljust(16), 1, 7, policy)
    id_key, author_key = (elliptic.pack_public_key(key.public_key()) for key in (ID_KEY, AUTHOR_KEY))
    sha384 = hashes.SHA384()
    auth = IdAuth(
        1, 1, elliptic.sign(ID_KEY, block.pack(), sha384), id_key, elliptic.sign(AUTHOR_KEY, id_key, sha384), author_key
    )
    return block.pack(), auth.pack()


def finish(machine, block, auth, flags=3):
    """The status of LAUNCH_FINISH, which changes nothing if it is a refusal."""
    machine.bus.write(BLOCK_AT, block)
    machine.bus.write(AUTH_AT, auth)
    machine.bus.write(COMMAND_PAGE, buffers.SnpLaunchFinish(GCTX, BLOCK_AT, AUTH_AT, flags).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.LAUNCH_FINISH, COMMAND_PAGE)
    assert (machine.snapshot() == before) == (status != Status.SUCCESS)
    return status


@pytest.mark.parametrize("flags", [1, 3])
def test_a_block_that_sev_snp_measure_made_is_taken(tmp_path, flags):
    paths = []
    for name in ("id", "author"):
        path = tmp_path / f"{name}.pem"
        key = ec.generate_private_key(ec.SECP384R1())
        pkcs8, no_encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, no_encryption))
        paths.append(str(path))
    machine = launched()
    made = snp_calc_id_block(machine.psp.launch_record(GCTX).digest, *paths)
    block, auth, id_digest, author_digest = (
        base64.b64decode(re.search(pattern, made)[1])
        for pattern in (r"id-block=([^,]+),", r"id-auth=(\S+)", r"id_key_hash: (\S+)", r"author_key: (\S+)")
    )
    assert finish(machine, block, auth, flags) == Status.SUCCESS
    guest = context(machine)
    assert guest.state == SnpGuestState.RUNNING
    assert guest.id_key_digest == id_digest
    assert guest.author_key_digest == (author_digest if flags == 3 else bytes(48))


def test_a_guest_without_a_block_has_no_identity():
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    guest = context(machine)
    assert (guest.family_id, guest.image_id, guest.guest_svn) == (bytes(16), bytes(16), 0)
    assert guest.id_key_digest == guest.author_key_digest == bytes(48)


def test_what_the_block_says_is_kept():
    machine = launched()
    assert finish(machine, *ours(machine.psp.launch_record(GCTX).digest)) == Status.SUCCESS
    identity = context(machine)
    assert (identity.family_id, identity.image_id, identity.guest_svn) == (b"family".ljust(16), b"image".ljust(16), 7)
    key = elliptic.pack_public_key(ID_KEY.public_key())
    assert identity.id_key_digest == hashlib.sha384(key).digest()


def test_another_digest_or_policy_is_refused_though_it_is_signed():
    machine = launched()
    digest = machine.psp.launch_record(GCTX).digest
    assert finish(machine, *ours(bytes([digest[0] ^ 1]) + digest[1:])) == Status.BAD_MEASUREMENT
    assert finish(machine, *ours(digest, POLICY | 1 << 19)) == Status.POLICY_FAILURE


SIGNED = [*range(0x60), *range(0x1000 + 0x40, 0x1000 + 0x240 + 0x404), *range(0x1000 + 0x680, 0x1000 + 0x880 + 0x404)]


@settings(max_examples=25, deadline=None)
@given(at=st.sampled_from(SIGNED), flips=st.integers(1, 255))
def test_a_changed_byte_is_refused(at, flips):
    machine = launched()
    block, auth = ours(machine.psp.launch_record(GCTX).digest)
    changed = bytearray(block.ljust(0x1000, b"\0") + auth)
    changed[at] ^= flips
    expected = Status.INVALID_PARAM if 0x50 <= at < 0x54 else Status.BAD_SIGNATURE
    assert finish(machine, bytes(changed[:0x60]), bytes(changed[0x1000:])) == expected


@pytest.mark.parametrize("algorithms", [(0, 1), (2, 1), (1, 0)])
def test_another_algorithm_is_refused(algorithms):
    machine = launched()
    block, auth = ours(machine.psp.launch_record(GCTX).digest)
    auth = b"".join(one.to_bytes(4, "little") for one in algorithms) + auth[8:]
    assert finish(machine, block, auth) == Status.INVALID_PARAM


def test_another_author_s_signature_is_refused_only_if_an_author_is_asked_for():
    machine = launched()
    block, auth = ours(machine.psp.launch_record(GCTX).digest)
    forged = auth[:0x680] + auth[0x40:0x240] + auth[0x880:]
    assert finish(machine, block, forged) == Status.BAD_SIGNATURE
    assert finish(machine, block, forged, flags=1) == Status.SUCCESS


@pytest.mark.parametrize("where", [("id_block_address", (1 << 24) - 0x5F), ("id_auth_address", 1 << 50)])
def test_addresses_outside_of_memory_are_refused(where):
    machine = launched()
    finish_buffer = buffers.SnpLaunchFinish(gctx=GCTX, flags=3, **dict([where]))
    machine.bus.write(COMMAND_PAGE, finish_buffer.pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_FINISH, COMMAND_PAGE) == Status.INVALID_ADDRESS
    assert machine.snapshot() == before


def test_layouts_have_their_sizes():
    assert (IdBlock.SIZE, IdAuth.SIZE) == (0x60, 0x1000)
