"""What a guest's own copies between private memory and bounce buffers do for its hypervisor (rows 17 and 18).

The guest decrypts whatever lies in the page that it sends from, and encrypts whatever
it received. Row 17 (Li et al. 2019) swaps the source of a copy: by moving ciphertext
over it, where the address does not matter, and by mapping another page in its place,
which works under any tweak. Row 18 (SEVerity, Morbitzer et al. 2021) has the guest
encrypt bytes that came in, and maps the page where they lie in the place of code.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import CONTENT_BYTES, PAGE_BYTES

CODE = (b"\x0f\x01\xd9\xeb\xfb" * CONTENT_BYTES)[:CONTENT_BYTES]
"""VMMCALL and a jump back to it."""


def swap_what_is_sent(target: Target) -> Attack:
    """Row 17: lay the secret's ciphertext over the page that the guest sends, and read what it sends."""
    victim = target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    (secret,) = yield (HostRead(victim.secret.spa, PAGE_BYTES, encrypted=victim.c_bit),)
    if isinstance(secret, bytes):
        yield (HostWrite(victim.answer.spa, secret, encrypted=victim.c_bit),)
        yield WRITE_BACK
        yield LET_IT_RUN
        yield WRITE_BACK
        yield (HostRead(victim.outbox.spa, CONTENT_BYTES, encrypted=victim.c_bit),)
    # The address tells in the cipher: serve the secret itself.
    yield smash(victim.answer, victim.secret)
    yield (point(victim, victim.answer, victim.secret.spa),)
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(victim.outbox.spa, CONTENT_BYTES, encrypted=victim.c_bit),)


def send_code(target: Target) -> Attack:
    """Row 18: have the guest receive code, and run it in the place of its own."""
    victim = target.victim
    yield LET_IT_RUN
    yield (HostWrite(victim.inbox.spa, CODE, encrypted=victim.c_bit),)
    yield WRITE_BACK
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.request, victim.code)
    yield (point(victim, victim.code, victim.request.spa),)
    yield LET_IT_RUN
