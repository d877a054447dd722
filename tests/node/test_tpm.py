"""The TPM's commands, byte for byte: known commands, digests by another route, and what is malformed."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.tpm import STATE_BYTES, TpmCode, TpmState, execute

SEED = bytes(range(32))
# As tpm2-tools 5 sends them (tpm2_startup -c, tpm2_getrandom 32, tpm2_pcrread sha256:16).
STARTUP = bytes.fromhex("8001 0000000c 00000144 0000")
GET_RANDOM = bytes.fromhex("8001 0000000c 0000017b 0020")
PCR_READ = bytes.fromhex("8001 00000014 0000017e 00000001 000b 03 000001")
DIGEST = hashlib.sha256(b"measured").digest()


def extend(pcr=16, *digests, auth="00000009 40000009 0000 01 0000", count=None):
    values = b"".join(struct.pack(">H", algorithm) + digest for algorithm, digest in digests)
    count = len(digests) if count is None else count
    body = struct.pack(">I", pcr) + bytes.fromhex(auth) + struct.pack(">I", count) + values
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body


def read(algorithm, bits):
    body = struct.pack(">IHB", 1, algorithm, 3) + bits.to_bytes(3, "little")
    return struct.pack(">HII", 0x8001, 10 + len(body), 0x17E) + body


def code(response):
    tag, size, found = struct.unpack(">HII", response[:10])
    assert size == len(response)
    assert not found or (tag, size) == (0x8001, 10)
    return found


@pytest.fixture
def started():
    state, response = execute(TpmState(), SEED, STARTUP)
    assert response == bytes.fromhex("8001 0000000a 00000000")
    return state


def test_nothing_works_before_startup_and_startup_works_once(started):
    for command in (GET_RANDOM, PCR_READ, extend(16, (0xB, DIGEST))):
        state, response = execute(TpmState(), SEED, command)
        assert (state, code(response)) == (TpmState(), TpmCode.INITIALIZE)
    assert code(execute(started, SEED, STARTUP)[1]) == TpmCode.INITIALIZE
    resume = STARTUP[:-1] + b"\1"
    assert code(execute(TpmState(), SEED, resume)[1]) == 0x1C4, "TPM_RC_VALUE of parameter 1"


def test_random_bytes_follow_from_seed_and_count(started):
    state, response = execute(started, SEED, GET_RANDOM)
    assert response[:12] == bytes.fromhex("8001 0000002c 00000000 0020")
    first = response[12:]
    assert len(first) == 32
    assert execute(started, SEED, GET_RANDOM)[1][12:] == first
    assert execute(state, SEED, GET_RANDOM)[1][12:] != first
    assert execute(started, bytes(32), GET_RANDOM)[1][12:] != first
    # No more than the largest digest there is.
    assert execute(started, SEED, GET_RANDOM[:-2] + b"\xff\xff")[1][10:12] == b"\0\x30"


def test_pcrs_are_zero_after_startup_but_those_of_dynamic_launch(started):
    for number in range(24):
        response = execute(started, SEED, read(0xB, 1 << number))[1]
        expected = (b"\xff" if 17 <= number <= 22 else b"\0") * 32
        assert response[-32:] == expected
    assert execute(started, SEED, PCR_READ)[1][10:] == bytes.fromhex(
        "00000000 00000001 000b 03 000001 00000001 0020" + 32 * "00"
    )


@pytest.mark.parametrize(("algorithm", "name", "size"), [(0xB, "sha256", 32), (0xC, "sha384", 48)])
def test_extending_hashes_what_was_there_with_what_comes(started, algorithm, name, size):
    expected, state = bytes(size), started
    for number in range(1, 4):
        digest = hashlib.new(name, f"event {number}".encode()).digest()
        state, response = execute(state, SEED, extend(7, (algorithm, digest)))
        assert response == bytes.fromhex("8002 00000013 00000000 00000000 0000 01 0000")
        expected = hashlib.new(name, expected + digest).digest()
        found = execute(state, SEED, read(algorithm, 1 << 7))[1]
        assert found[-size:] == expected
        assert found[10:14] == struct.pack(">I", number)
    other = 0x17 - algorithm
    assert not any(execute(state, SEED, read(other, 1 << 7))[1][-32:])


def test_both_banks_extend_at_once(started):
    digests = (0xB, DIGEST), (0xC, hashlib.sha384(b"measured").digest())
    state, _ = execute(started, SEED, extend(0, *digests))
    assert state.pcrs[0][0] == hashlib.sha256(bytes(32) + DIGEST).digest()
    assert state.pcrs[1][0] == hashlib.sha384(bytes(48) + digests[1][1]).digest()
    assert state.updates == 2


def test_no_more_than_eight_digests_come_at_once(started):
    response = execute(started, SEED, read(0xB, 0xFFFF))[1]
    assert response[14:22] == bytes.fromhex("00000001 000b 03 ff")
    assert response[24:28] == bytes.fromhex("00000008")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"", TpmCode.COMMAND_SIZE),
        (GET_RANDOM[:-1], TpmCode.COMMAND_SIZE),
        (GET_RANDOM + b"\0", TpmCode.COMMAND_SIZE),
        (b"\x80\x03" + GET_RANDOM[2:], TpmCode.BAD_TAG),
        (bytes.fromhex("8001 0000000a 0000017a"), TpmCode.COMMAND_CODE),
        (bytes.fromhex("8001 0000000b 0000017b 00"), 0x1DA),  # insufficient, parameter 1
        (bytes.fromhex("8001 0000000e 0000017b 0020 0000"), TpmCode.SIZE),
        (b"\x80\x02" + GET_RANDOM[2:], TpmCode.AUTH_CONTEXT),
        (b"\x80\x01" + extend(16, (0xB, DIGEST))[2:], TpmCode.AUTH_MISSING),
        (extend(24, (0xB, DIGEST)), 0x184),  # value, handle 1
        (extend(17, (0xB, DIGEST)), TpmCode.LOCALITY),
        (extend(16, (0x4, DIGEST)), 0x1C3),  # hash, parameter 1
        (extend(16, (0xB, DIGEST[:-1])), 0x1DA),
        (extend(16, (0xB, DIGEST), (0xB, DIGEST), (0xB, DIGEST)), 0x1D5),  # size, parameter 1
        (extend(16, (0xB, DIGEST), count=0), TpmCode.SIZE),
        (extend(16, (0xB, DIGEST), auth="00000008 40000009 0000 01 00"), TpmCode.AUTHSIZE),
        (extend(16, (0xB, DIGEST), auth="ffffffff 40000009 0000 01 0000"), TpmCode.AUTHSIZE),
        (extend(16, (0xB, DIGEST), auth="00000009 02000000 0000 01 0000"), 0x984),
        (extend(16, (0xB, DIGEST), auth="0000000a 40000009 0000 01 0001 ff"), 0x98E),
        (read(0x4, 1), 0x1C3),
        (bytes.fromhex("8001 00000014 0000017e 00000001 000b 04 000001"), 0x1C4),
        (bytes.fromhex("8001 0000000e 0000017e 00000011"), 0x1D5),
    ],
    ids=lambda one: one.hex() if isinstance(one, bytes) else hex(one),
)
def test_what_is_malformed_gets_the_code_of_the_specification_and_changes_nothing(started, command, expected):
    state, response = execute(started, SEED, command)
    assert (state, code(response)) == (started, expected)


def test_the_null_handle_extends_nothing(started):
    state, response = execute(started, SEED, extend(0x4000_0007, (0xB, DIGEST)))
    assert (state, code(response)) == (started, 0)


@given(st.binary(max_size=80), st.sampled_from((b"", STARTUP[:6], GET_RANDOM[:10], PCR_READ[:10])))
def test_any_bytes_are_answered(data, head):
    state, response = execute(TpmState(started=True), SEED, head + data)
    code(response)
    assert TpmState.parse(state.pack()) == state


def test_the_state_is_bytes_and_zeros_are_one_that_was_never_started():
    assert TpmState.parse(bytes(STATE_BYTES)) == TpmState()
    state, _ = execute(TpmState(), SEED, STARTUP)
    assert len(state.pack()) == STATE_BYTES
