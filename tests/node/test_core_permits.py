"""Cores refuse a guest that firmware activated for other core complexes, and run it in its own."""

import pytest
from toy_guests import make_host, start

from node import operations as op
from node.generation import Generation
from node.host_instructions import VMEXIT_INVALID
from psp.status import PspError


class Ids:
    """Memory with one APIC ID."""

    def __init__(self, apic_id):
        self.apic_id = apic_id

    def read(self, _spa, _length):
        return self.apic_id.to_bytes(4, "little")


@pytest.mark.parametrize(("product", "width"), [("Rome", 8), ("Milan", 16)])
def test_a_guest_runs_in_its_complexes_and_nowhere_else(product, width):
    host = make_host(product=product)
    guest = start(host, "vm", Generation.SEV_ES if product == "Rome" else Generation.SEV_SNP)

    def vmrun(core):
        _, code = host.board.execute_host((op.VmPreempt("vm", 0), op.VmRun("vm", 0, core)))
        return code

    assert vmrun(5 * width) == 0
    permits = host.board.psp.legacy._permits
    permits.add(guest.asid, permits.named(Ids(2 * width), 0, 1))
    assert [vmrun(core) for core in (2 * width - 1, 2 * width, 3 * width - 1, 3 * width, 0)] == [
        VMEXIT_INVALID, 0, 0, VMEXIT_INVALID, VMEXIT_INVALID,
    ]  # fmt: skip
    permits.add(guest.asid, frozenset({0}))
    assert [vmrun(core) for core in (0, 2 * width, width)] == [0, 0, VMEXIT_INVALID]
    permits.drop(guest.asid)
    assert vmrun(width) == 0
    with pytest.raises(PspError):
        permits.named(Ids(0), 0, host.spec.product.threads + 1)


def test_what_firmware_says_of_an_asid_concerns_guests_with_a_key_alone():
    host = make_host(product="Rome")
    start(host, "plain", Generation.PLAIN)
    vmcb = host.board.vmcb("plain", 0)
    host.board.psp.legacy._permits.add(5, frozenset({0}))
    block = op.VmcbWrite("plain", 0, 5, "PLAIN", vmcb.save_area_spa)
    assert host.board.execute_host((block, op.VmRun("plain", 0, 40))) == (None, 0)
    block = op.VmcbWrite("plain", 0, 5, "SEV_ES", vmcb.save_area_spa)
    assert host.board.execute_host((block, op.VmRun("plain", 0, 40))) == (None, VMEXIT_INVALID)
