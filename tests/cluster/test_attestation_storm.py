"""A fleet whose guests all attest at once shares one key service, in virtual time and the same way each time."""

import warnings
from dataclasses import replace
from itertools import combinations

import pytest
from cryptography import x509

from cluster import Scenario, run
from cluster.host_entity import HostOrder, build_host
from cluster.inline_layout import InlineLayout
from cluster.key_server.failures import Lie
from cluster.key_server.key_desk import KeyDesk
from cluster.scenario import ScenarioError
from cluster.scenario_keys import KeyServiceSettings
from cluster.tables import TABLES
from node.host import HostSpec
from node.product import PRODUCTS
from psp.certificate_table import CertificateKind, parsed
from psp.chip_identity import ChipIdentity
from psp.product_root import ProductRoot

S = 1_000_000_000
HOSTS = 4


def scenario(generation="SEV_SNP", **service):
    return Scenario.parse({
        "schema": 1,
        "name": "storm",
        "duration": "600 s",
        "hosts": [{"name": "host", "product": "Milan", "count": HOSTS, "memory": "4 GiB"}],
        "vms": [{
            "name": "guest", "count": HOSTS, "generation": generation, "memory": "2 GiB", "workload": "attesting",
            "parameters": {"needs_certificates": 1, "stops": 1},
        }],
        "key_service": service,
    })  # fmt: skip


@pytest.fixture(scope="module")
def storm():
    return run(scenario(requests_per_s=0.5, burst=2), layout="inline")


def test_each_host_gets_its_certificates_in_its_turn_and_its_guest_attests_then(storm):
    held = sorted(row["held_ns"] for row in storm.certificates.to_pylist())
    assert len(held) == HOSTS
    # Two at once, and never more than the service's rate gives on top of two.
    assert held[0] == held[1] < held[2]
    for first, last in combinations(range(HOSTS), 2):
        assert last - first + 1 <= 2 + (held[last] - held[first]) / (2 * S)
    hosts = {row["host"]: row["held_ns"] for row in storm.certificates.to_pylist()}
    for vm in storm.vms.to_pylist():
        assert (vm["state"], vm["reason"]) == ("ended", None)
        since = max(hosts[vm["host"]], vm["running_ns"])
        assert since < vm["ended_ns"] < since + 2 * S  # it naps for a second at most


def test_who_was_refused_asked_again_and_nobody_asked_for_nothing(storm):
    rows = storm.certificates.to_pylist()
    assert all(row["asked"] == row["refused"] + 1 for row in rows)
    assert sum(row["refused"] for row in rows) >= HOSTS - 2
    assert sorted(row["refused"] for row in rows)[:2] == [0, 0]


def test_the_same_storm_breaks_the_same_way_in_windows_which_do_not_grow_with_who_waits(storm, monkeypatch):
    monkeypatch.setattr(InlineLayout, "together", lambda *_: None)
    again = run(scenario(requests_per_s=0.5, burst=2), layout="inline")
    assert again.digest == storm.digest
    assert storm.run["round_trips"] == 0 < again.run["round_trips"] < 60 * HOSTS
    assert storm.run["control_plane_acts"] == again.run["control_plane_acts"]


def desk(**service):
    return KeyDesk.of(KeyServiceSettings.model_validate(service))


def test_a_limit_for_each_host_or_none_holds_up_nobody_else():
    assert [desk().ask("a", 0) for _ in range(3)] == [(0, None)] * 3
    one = desk(requests_per_s=0.5, per="host")
    assert [one.ask(host, 0) for host in "aba"] == [(0, None), (0, None), (0, 2 * S)]
    one = desk(requests_per_s=0.5)
    assert [one.ask(host, 0) for host in "ab"] == [(0, None), (0, 2 * S)]


def test_a_service_that_is_down_or_slow_is_so_for_all_and_for_its_time():
    one = desk(down_until="30 s", delay="5 ms", retry="7 s", requests_per_s=0.5)
    assert one.ask("a", 0) == one.ask("b", 30 * S - 1) == (5_000_000, 7 * S)
    # What was refused so counts for no limit.
    assert (one.ask("a", 30 * S), one.ask("b", 30 * S)) == ((5_000_000, None), (5_000_000, 2 * S))


def test_without_guests_that_can_attest_no_key_is_made_and_nobody_asks(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(ChipIdentity, "vcek_key", never)
    monkeypatch.setattr(ProductRoot, "key", never)
    results = run(scenario("SEV_ES"), layout="inline")
    assert results.certificates.num_rows == 0


@pytest.mark.parametrize("lie", [None, *Lie])
def test_guests_get_what_the_service_gives_lies_and_all(lie):
    spec = HostSpec("host-1", PRODUCTS["Milan"], 4 << 30, 100, 1, 60 * S)
    entity = build_host(HostOrder(spec, (), (), keys=(0, lie)).pack())
    store, chip = entity.host.certificates, entity.host.board.psp.legacy.keys.chip
    store.answered(None)
    table = store.fetch()
    if lie is Lie.GARBAGE:
        assert table == b""  # no chain could be read
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vcek = x509.load_der_x509_certificate(parsed(table)[CertificateKind.VCEK])
    tcb = entity.host.board.psp.firmware.reported_tcb
    is_its_own = vcek.public_key() == chip.vcek_key(tcb).public_key()
    assert is_its_own == (lie not in {Lie.OTHER_CHIP, Lie.OTHER_TCB})


def test_a_host_without_a_key_service_has_no_certificates():
    spec = HostSpec("host-1", PRODUCTS["Milan"], 4 << 30, 100, 1, 60 * S)
    for order in (HostOrder(spec, ()), HostOrder(replace(spec, product=PRODUCTS["Rome"]), (), keys=(0, None))):
        entity = build_host(order.pack())
        assert entity.host.certificates is None
        assert entity.host.board.certificates() == b""


@pytest.mark.parametrize(
    ("service", "field"),
    [({"requests_per_s": 0}, "requests_per_s"), ({"burst": 0}, "burst"), ({"lie": "white"}, "lie"),
     ({"delay": "-1 s"}, "delay"), ({"laboratory": -1}, "laboratory"), ({"per": "rack"}, "per")],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(service, field):
    with pytest.raises(ScenarioError, match=field):
        scenario(**service)


def test_the_table_is_among_the_results():
    assert [column.name for column in TABLES["certificates"].columns] == [
        "host", "asked", "refused", "renewed", "wanted_ns", "held_ns",
    ]  # fmt: skip
