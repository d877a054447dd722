"""What ``sevfleet device`` serves is a card of the kind that was asked for, with a real device behind it."""

from __future__ import annotations

import argparse

import pytest

from cluster.cli import main
from cluster.commands.device import _card
from cluster.device_server.device_door import DeviceDoor
from tio.gpu import Gpu
from tio.nic_card import NicDevice
from tio.nvme_card import NvmeDevice
from tio.spdm import PCI_DOE, Requester, RequesterSettings, TrustAnchors
from tio.steps import carry


@pytest.mark.parametrize(("kind", "device"), [("gpu", Gpu), ("nic", NicDevice), ("nvme", NvmeDevice)])
def test_every_kind_is_served_and_believed(kind: str, device: type) -> None:
    card = _card(argparse.Namespace(kind=kind, serial="77", seed=5))
    assert isinstance(card.function.device, device)
    one = Requester(RequesterSettings(anchors=TrustAnchors((card.identity.root,))), PCI_DOE, bytes)
    responder = card.responder(PCI_DOE)
    for steps in (one.connect, one.digests, one.certificates, one.challenge):
        carry(steps(), responder.answer)
    assert f"sevfleet {kind} 77" in one.chains[0].leaf.subject.rfc4514_string()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "device.example:0"])
def test_other_machines_reach_a_device_only_where_that_was_said(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "--listen", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sevfleet: --listen: expected an address of this machine alone, or --public as well, got ")
    assert line.endswith(address[:-2].strip("[]"))


@pytest.mark.parametrize(
    ("address", "more"),
    [("127.0.0.1:0", ()), ("127.9.9.9:0", ()), ("localhost:0", ()), ("0.0.0.0:0", ("--public",))],
)
def test_it_listens_where_it_may(address: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    async def refuse(_door: DeviceDoor, host: str, port: int) -> int:
        opened.append((host, port))
        raise OSError("enough")

    monkeypatch.setattr(DeviceDoor, "open", refuse)
    assert main(["device", "--listen", address, *more]) == 1
    assert opened == [(address[:-2], 0)]
