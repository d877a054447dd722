"""What ``sevfleet device`` serves is a card of the kind that was asked for, with a real device behind it."""

from __future__ import annotations

import argparse

import pytest

from cluster.commands.device import _card
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
