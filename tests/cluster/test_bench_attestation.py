"""The attestation benchmark in small: what it times are reports, and hosts that do not attest touch no key."""

import pytest

from cluster.bench import attestation as bench
from cluster.errors import ToolError
from psp.attestation_report import REPORT_BYTES
from psp.guest_message import MessageHeader


@pytest.fixture
def small(monkeypatch):
    for name, value in (("REPORTS", 3), ("HOSTS", 2), ("LABORATORY", b"0")):
        monkeypatch.setattr(bench, name, value)


def test_figures_are_held_against_what_is_asked_for(small):
    figures = {one.name: one for one in bench.run()}
    limits = [one.reference for one in figures.values() if one.reference]
    assert limits == [bench.MOST_OF_FIRMWARE, bench.MOST_OF_WHOLE_WAY] == [1.5, 4.0]
    assert figures["chips among them that made a key"].value == 0
    times = [one.value for one in figures.values() if one.unit in ("us", "s", "x")]
    assert len(times) == len(figures) - 1
    assert all(value > 0 for value in times)


def test_what_is_timed_is_a_report_of_the_firmware_s_and_of_the_guest_s():
    made = bench._Attesting()
    made.lay_request(0)
    made.firmware_report()
    answer = made.board.controller.read(made._response, 4096, 0)
    assert MessageHeader.parse(answer).payload_bytes == 0x20 + REPORT_BYTES
    made.guest_report()
    made.guest_report()
    (vcpu,) = made.host.guests["guest"].vcpus
    context = made.board.psp.snp.guests.pages.read(made._gctx)
    assert context.message_counts == (2 * vcpu.registers.r13, 2, 0, 0)
    with pytest.raises(ToolError, match="got AEAD_OFLOW"):
        made.firmware_report()


def test_a_chip_that_made_a_key_is_counted(small, monkeypatch):
    make = bench._host

    def touched(name, programs):
        host = make(name, programs)
        if name == "host1":
            host.board.psp.legacy.keys.chip.vcek_key(0)
        return host

    monkeypatch.setattr(bench, "_host", touched)
    assert [one.value for one in bench._fleet()][1] == 1
