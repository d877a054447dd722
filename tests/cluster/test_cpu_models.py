"""A machine goes to processors that have what it was shown, and to no others: it is told so before its first byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_live_migration import Carried, play

from cluster import Scenario, run
from cluster.bench.faults import small_firmware
from cluster.inline_layout import InlineLayout
from cluster.placement import FirstFit, HostAccount
from cluster.results import Results
from cluster.scenario import ScenarioError
from node.cpu_features import CpuidSwitches
from node.generation import Generation
from node.guest import GuestSpec
from node.migration_refusal import MigrationRefusal
from node.product import PRODUCTS
from node.program import ProgramSpec
from node.vmsa import SevFeature

UPWARDS = ("Naples", "Rome", "Milan", "Genoa", "Turin")
HOSTS = [{"name": product.lower(), "product": product, "memory": "2 GiB"} for product in UPWARDS]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_firmware(tmp_path_factory.mktemp("firmware"))


def scenario(image: Path, moves: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    machine = {"name": "vm", "generation": "PLAIN", "memory": "64 MiB", "workload": "idle", "start": "running",
               "firmware": str(image)}  # fmt: skip
    return {
        "schema": 1, "name": "models", "duration": "20 s", "hosts": HOSTS,
        "vms": [machine | changes], "migrations": [{"vm": "vm", "pause": "1 s"} | one for one in moves],
    }  # fmt: skip


def moved(image: Path, *route: str, **changes: Any) -> Results:
    moves = [{"at": f"{2 * number + 1} s", "to": to} for number, to in enumerate(route[1:])]
    return run(Scenario.parse(scenario(image, moves, host=route[0], **changes)), layout="inline")


def reasons(results: Results) -> list[str | None]:
    return [row["reason"] for row in results.migrations.to_pylist()]


def test_upwards_it_goes_through_all_products_and_back_to_where_it_was_launched(image: Path) -> None:
    results = moved(image, *[product.lower() for product in UPWARDS], "naples", "turin", "rome")
    assert reasons(results) == [None] * 7
    (row,) = results.vms.to_pylist()
    assert (row["host"], row["state"]) == ("rome", "running")


@pytest.mark.parametrize(("source", "target"), [("rome", "naples"), ("milan", "rome"), ("genoa", "milan"),
                                                ("turin", "genoa"), ("turin", "naples")])  # fmt: skip
@pytest.mark.parametrize("generation", ["PLAIN", "SME"])
def test_downwards_it_is_refused_before_anything_is_sent(
    image: Path, source: str, target: str, generation: str
) -> None:
    changes = {"generation": generation}
    body = scenario(image, [{"at": "1 s", "to": target}], host=source, **changes)
    body["hosts"] = [host | {"mode": "sme"} for host in HOSTS] if generation == "SME" else HOSTS
    results = run(Scenario.parse(body), layout="inline")
    (row,) = results.migrations.to_pylist()
    assert (row["outcome"], row["reason"], row["bytes"]) == ("refused", "CPU_FEATURES", 0)
    (vm,) = results.vms.to_pylist()
    assert (vm["host"], vm["state"]) == (source, "running")


def test_having_been_up_shows_it_no_more_than_before(image: Path) -> None:
    """From Milan to Genoa and back it may go, but to Rome not from either."""
    results = moved(image, "milan", "genoa", "rome", "milan", "rome")
    assert reasons(results) == [None, "CPU_FEATURES", None, "CPU_FEATURES"]


def test_what_it_was_shown_goes_along_between_processes(image: Path) -> None:
    moves = [{"at": f"{2 * number + 1} s", "to": to} for number, to in enumerate(("genoa", "rome", "milan", "rome"))]
    here, carried = (
        play(scenario(image, moves, host="milan"), layout=layout)[1] for layout in (InlineLayout(), Carried())
    )
    assert here == carried
    assert [row["reason"] for row in here["migrations"]] == [None, "CPU_FEATURES", None, "CPU_FEATURES"]


def test_one_that_is_shown_an_older_model_goes_wherever_that_is_had(image: Path) -> None:
    results = moved(image, "turin", "rome", "genoa", "naples", "milan", cpu_model="EPYC-Rome")
    assert reasons(results) == [None, None, "CPU_FEATURES", None]


def test_where_no_target_is_named_only_hosts_that_have_it_are_asked(image: Path) -> None:
    def destination(start: str, **changes: Any) -> tuple[object, object]:
        results = run(Scenario.parse(scenario(image, [{"at": "1 s"}], host=start, **changes)), layout="inline")
        (row,) = results.migrations.to_pylist()
        return row["destination"], row["reason"]

    assert destination("milan") == ("genoa", None)
    assert destination("turin") == (None, "CPU_FEATURES")
    assert destination("turin", cpu_model="EPYC") == ("naples", None)


def test_a_model_that_no_host_can_show_is_refused_with_the_scenario(image: Path) -> None:
    Scenario.parse(scenario(image, [], host="genoa", cpu_model="EPYC-Genoa"))
    with pytest.raises(ScenarioError, match=r"cpu_model.*milan \(Milan\).*EPYC-Genoa"):
        Scenario.parse(scenario(image, [], host="milan", cpu_model="EPYC-Genoa"))
    with pytest.raises(ScenarioError, match="cpu_model"):
        Scenario.parse(scenario(image, [], cpu_model="EPYC-v4"))


def test_a_model_chooses_the_host_too(image: Path) -> None:
    results = run(Scenario.parse(scenario(image, [], cpu_model="EPYC-Genoa", start="launch")), layout="inline")
    assert [row["host"] for row in results.vms.to_pylist()] == ["genoa"]


def account(product: str, **changes: Any) -> HostAccount:
    kinds = frozenset({Generation.PLAIN, Generation.SEV, Generation.SEV_SNP})
    values: dict[str, Any] = {"free_bytes": 1 << 40, "free_vcpus": 64.0, "free_asids": {}} | changes
    return HostAccount(product, kinds, has_agent=True, product=PRODUCTS[product], **values)


@pytest.mark.parametrize(
    ("guest", "source", "target", "refusal"),
    [
        ({"generation": Generation.SEV}, "Genoa", "Milan", MigrationRefusal.OTHER_PRODUCT_LINE),
        ({"generation": Generation.SEV}, "Genoa", "Siena", None),
        ({"generation": Generation.PLAIN}, "Genoa", "Siena", None),
        ({"generation": Generation.SEV_SNP, "migration_agent": True, "sev_features": SevFeature.SMT_PROTECTION},
         "Genoa", "Siena", None),
        ({"generation": Generation.SEV_SNP, "migration_agent": True, "sev_features": SevFeature.SMT_PROTECTION},
         "Genoa", "Milan", MigrationRefusal.OTHER_PRODUCT_LINE),
        ({"generation": Generation.PLAIN, "sev_features": SevFeature.SMT_PROTECTION},
         "Genoa", "Milan", MigrationRefusal.SEV_FEATURES),
    ],
)  # fmt: skip
def test_the_line_is_named_before_features(
    guest: dict[str, Any], source: str, target: str, refusal: MigrationRefusal | None
) -> None:
    values = {"name": "vm", "vcpus": 1, "memory_bytes": 1 << 30, "program": ProgramSpec("idle"), "seed": 1}
    fit = FirstFit((account(source), account(target)))
    assert fit.place(GuestSpec(**(values | guest)), source) == source
    kept = fit.keep("vm", target, frozenset({source}))
    assert (kept == target) == (refusal is None)
    assert fit.misfit("vm", target) is refusal


def test_what_the_software_of_one_host_shows_that_of_another_of_its_line_must_show_too() -> None:
    def milan(name: str, switches: CpuidSwitches) -> HostAccount:
        made = account("Milan")
        made.name, made.product = name, replace(PRODUCTS["Milan"], cpuid=switches)
        return made

    def moved(source: str, target: str) -> tuple[str | None, MigrationRefusal | None]:
        fit = FirstFit((milan("late", CpuidSwitches(shadow_stacks=True)), milan("early", CpuidSwitches())))
        assert fit.place(GuestSpec("vm", Generation.PLAIN, 1, 1 << 30, ProgramSpec("idle"), 1), source) == source
        return fit.keep("vm", target, frozenset({source})), fit.misfit("vm", target)

    assert moved("late", "early") == (None, MigrationRefusal.CPU_FEATURES)
    assert moved("early", "late") == ("late", None)


def test_where_one_host_would_do_but_is_full_it_is_room_that_is_wanting() -> None:
    fit = FirstFit((account("Milan"), account("Rome"), account("Genoa", free_vcpus=0.0)))
    assert fit.place(GuestSpec("vm", Generation.PLAIN, 1, 1 << 30, ProgramSpec("idle"), 1), "Milan") == "Milan"
    assert fit.keep("vm", None, frozenset({"Milan"})) is None
    assert fit.misfit("vm", None) is None
    assert fit.misfit("vm", "Genoa") is None
    assert fit.misfit("vm", "Rome") is MigrationRefusal.CPU_FEATURES
