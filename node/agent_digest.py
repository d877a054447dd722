"""The launch digest of the laboratory's migration agents, as whoever relies on their guests works it out."""

from __future__ import annotations

from functools import cache

from node.agent_core import AGENT_IMAGE
from node.cpu_model import model_of
from node.expected_measurement import snp_digest
from node.svsm_launch import guest_launch_pages
from node.vmsa import SevFeature


@cache
def agent_digest() -> bytes:
    """48 bytes, the same on every product: one vCPU, and no feature but SEV-SNP."""
    return snp_digest(guest_launch_pages([AGENT_IMAGE], 1, model_of(""), SevFeature.SNP_ACTIVE))
