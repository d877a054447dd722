"""What is said over the network, and who answers: the victim's owner, and the code of guests that talk to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.laboratory.guest_code import GuestCode
from cluster.laboratory.sev_owner import SevOwner
from cluster.laboratory.snp_owner import SnpOwner
from cluster.oracle.transcript import Transcript
from node.actor import HYPERVISOR
from node.operations import Answer
from psp.sev_certificate import KeyUsage
from psp.sev_chain import PlatformChain
from workloads.attacks import owner_operations as said


@dataclass(frozen=True, slots=True)
class Network:
    """One victim's. Whatever goes over it, whoever runs the host sees."""

    transcript: Transcript
    sev_owner: SevOwner
    snp_owner: SnpOwner
    code: GuestCode
    snp: bool
    """Of which kind the victim is."""

    def act(self, batch: tuple[said.OwnerOperation, ...]) -> tuple[Answer, ...]:
        """Answer each; the transcript has what the attacker gets to see."""
        return tuple([self._answer(one) for one in batch])

    def _answer(self, one: said.OwnerOperation) -> Answer:
        answer = self._ways[type(one)](one)
        self.transcript.observe(HYPERVISOR, (one,), (answer,))
        return answer

    @property
    def _ways(self) -> Mapping[type, Callable[..., Answer]]:
        return {
            said.OpenSession: self.sev_owner.open_session,
            said.ShowMeasurement: self.sev_owner.answer_measurement,
            said.ShowAttestation: self.sev_owner.answer_attestation,
            said.AskForCertificates: self._certificates,
            said.ReadInjected: self.code.read_injected,
            said.GuestAsks: self.code.ask,
            said.GuestShows: self.code.show,
            said.AskNonce: lambda _: self._nonce(),
            said.ShowReport: lambda one: self.snp_owner.judge(one.report, one.channel_key),
        }

    def _nonce(self) -> bytes:
        return self.snp_owner.challenge() if self.snp else self.sev_owner.challenge()

    def _certificates(self, one: said.AskForCertificates) -> bytes:
        service = self.sev_owner.keys()
        chain = service.certified(PlatformChain.parse(one.pdh, one.chain))
        return chain.pack() + b"".join([service.amd(usage).pack() for usage in (KeyUsage.ASK, KeyUsage.ARK)])
