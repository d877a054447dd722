"""Guests that are not what their owner ordered: another image, another policy, another VMPL (rows 53 and 54)."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes

from node.operations import HostWrite
from psp import command_buffers as buffers
from psp import elliptic
from psp.commands import SnpCommand
from psp.id_block import ECDSA_P384_SHA384, IdAuth, IdBlock
from psp.launch_digest import LaunchDigest, PageType
from psp.policy import LegacyPolicy, SnpPolicy
from psp.system_bus import PAGE_BYTES
from workloads.attacks.asking_guest import AskingGuest
from workloads.attacks.small_codes import ATTACKERS_CODE, VICTIMS_CODE
from workloads.attacks.small_guest import CODE_GPA, POLICY, SECRETS_GPA
from workloads.attacks.small_sev_guest import SmallSevGuest
from workloads.attacks.target import Attack, Target
from workloads.attacks.undefended import by_generation

ID_BLOCK_ENABLED = 1 << 0


def _another_image_sev(target: Target) -> Attack:
    guest = SmallSevGuest.of(target)
    yield from guest.launch(ATTACKERS_CODE)
    if guest.handle:
        yield from guest.receive()


def _another_image_snp(target: Target) -> Attack:
    asking = AskingGuest.of(target)
    yield from asking.guest.launch(ATTACKERS_CODE)
    yield from asking.guest.finish()
    yield from asking.ask()


another_image = by_generation(_another_image_sev, _another_image_snp)
"""Row 54a: launch other code in the place of the owner's, and let it ask for the secret."""


def _debug_sev(target: Target) -> Attack:
    guest = SmallSevGuest.of(target)
    yield from guest.launch(VICTIMS_CODE, int(LegacyPolicy.NODBG))
    if not guest.handle:
        # The session's MAC covers the policy: under the owner's own then.
        yield from guest.launch(VICTIMS_CODE)
    if guest.handle:
        yield from guest.receive()
        yield from guest.debug()


def _debug_snp(target: Target) -> Attack:
    asking = AskingGuest.of(target)
    yield from asking.guest.launch(VICTIMS_CODE, POLICY | SnpPolicy.DEBUG)
    yield from asking.guest.finish()
    yield from asking.ask()
    yield from asking.debug(target)


allow_debugging = by_generation(_debug_sev, _debug_snp)
"""Rows 53a and 53b: launch the owner's code under a policy that allows debugging, and debug it."""


def strangers_id_block(target: Target) -> Attack:
    """Row 54b: first the owner's ID block for another image, which firmware refuses; then one of the attacker's."""
    asking = AskingGuest.of(target)
    guest, (block_at, auth_at) = asking.guest, target.spare[5:7]
    yield from guest.launch(ATTACKERS_CODE)
    for code, name in ((VICTIMS_CODE, OWNERS_KEY), (ATTACKERS_CODE, b"an attacker's ID key")):
        block, auth = signed_block(code, name)
        yield (HostWrite(block_at, block), HostWrite(auth_at, auth))
        yield guest.call(
            SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(guest.context, block_at, auth_at, ID_BLOCK_ENABLED)
        )
    yield from asking.ask()


def lower_vmpl(target: Target) -> Attack:
    """Row 54b: software at VMPL1 of the owner's own guest asks for the secret."""
    asking = AskingGuest.of(target)
    yield from asking.guest.launch(VICTIMS_CODE)
    yield from asking.guest.finish()
    yield from asking.ask(vmpl=1)


OWNERS_KEY = b"the owner's ID key"
"""Its block is no secret: the hypervisor hands it to the firmware."""


def signed_block(code: bytes, key_name: bytes) -> tuple[bytes, bytes]:
    """ID block and authentication for a guest of one page of code, by the key of a name."""
    key = id_key(key_name)
    block = IdBlock(digest=small_guest_digest(code), policy=POLICY).pack()
    public = elliptic.pack_public_key(key.public_key())
    signature = elliptic.sign(key, block, hashes.SHA384())
    return block, IdAuth(id_key_algorithm=ECDSA_P384_SHA384, block_signature=signature, id_key=public).pack()


def id_key(name: bytes) -> elliptic.PrivateKey:
    """The key of a name."""
    return elliptic.private_key(hashlib.shake_128(name).digest(elliptic.SEED_BYTES))


def small_guest_digest(code: bytes) -> bytes:
    """The launch digest of a small guest with a page of code, as its owner works it out."""
    digest = LaunchDigest()
    digest.update(PageType.NORMAL, CODE_GPA, code.ljust(PAGE_BYTES, b"\0"))
    digest.update(PageType.SECRETS, SECRETS_GPA)
    return digest.value
