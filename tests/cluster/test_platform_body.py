"""A host's settings cross to its worker whole."""

from dataclasses import fields, replace

import msgpack
import pytest

from cluster.platform_body import platform_body, platform_of
from node.card_slot import CardSlot
from node.memory_cipher import CipherMode, XtsSector
from node.platform import AS_USUAL, HostMode, Platform, Protection
from psp.installed_firmware import TcbOf
from psp.key_messages import RootTcb
from tio.device_identity import CardKind

CHANGED = Platform(
    mode=HostMode.TSME,
    disabled=frozenset(Protection),
    memory_cipher=CipherMode.AES_256_XTS,
    xts_sector=XtsSector.PAGE,
    firmware_api=(1, 37, 22),
    firmware_tcb=0xDB18_0000_0000_0004,
    report_version=5,
    migration_agent_floor=bytes(range(32)),
    derived_keys=RootTcb.REPORTED,
    reports_signed_for=TcbOf.CURRENT,
    tlb_entries=8,
    cards=(
        CardSlot(3, CardKind.NVME, "0007", 1 << 20, 4, disk="disk.img"), CardSlot(1, CardKind.GPU, encrypts=False),
    ),
)


@pytest.mark.parametrize("name", [one.name for one in fields(Platform)])
def test_every_setting_comes_out_as_it_went_in_and_of_its_type(name: str) -> None:
    usual, changed = getattr(AS_USUAL, name), getattr(CHANGED, name)
    if usual == changed:
        # Numbers and texts, which need no line of their own.
        changed = not usual if isinstance(usual, bool) else usual + 1
    platform = replace(AS_USUAL, **{name: changed})
    back = platform_of(msgpack.unpackb(msgpack.packb(platform_body(platform)), use_list=False))
    assert back == platform
    assert type(getattr(back, name)) is type(changed)
