"""`sevfleet attack`: the matrix as a user sees it."""

from __future__ import annotations

import json

import pytest

from cluster.cli import main
from cluster.laboratory.rows import ROWS
from cluster.laboratory.titles import TITLES


def attack(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["attack", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_every_row_has_a_title_and_none_is_left_over() -> None:
    assert TITLES.keys() == ROWS.keys()
    assert len(set(TITLES.values())) == len(TITLES)
    assert max(map(len, TITLES.values())) <= 56


def test_an_attack_is_shown_with_what_stopped_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = attack(capsys, "12", "--generations", "sev,sev-snp", "--why")
    assert code == 0
    head, row, *why, _, last = out.splitlines()
    assert head.split() == ["row", "attack", "SEV", "SEV_SNP"]
    assert row.split()[-2:] == ["leaked", "blocked"]
    assert why[0].startswith("       SEV on Turin: leaked: 64 bytes")
    assert "nested fault of victim" in why[1]
    assert last.startswith("on Turin;")


def test_a_mechanism_that_is_off_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = []
    for more in ([], ["--without", "gpa-match"], ["--without", "iommu_check"]):
        _, out, _ = attack(capsys, "12", "--generations", "sev-snp", "--product", "Milan", "--json", *more)
        (told,) = map(json.loads, out.splitlines())
        assert (told["row"], told["generation"], told["product"]) == ("12", "SEV_SNP", "Milan")
        outcomes.append(told["outcome"])
    assert outcomes == ["blocked", "leaked", "blocked"]


def test_a_product_without_a_generation_has_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = attack(capsys, "01", "--generations", "sev,sev-snp", "--product", "Naples")
    assert out.splitlines()[1].split()[-2:] == ["blocked", "-"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["12b"], 'ROW: expected "12", got "12b"'),
        (["--generations", "sev,foo"], "expected some of plain, sme, tsme, sev, sev-es, sev-snp, sev-tio"),
        (["--without", "walls"], "--without: expected some of rmp-write-check, gpa-match"),
        (["--product", "Zen"], "--product: expected one of Naples, Rome, Milan, Genoa, Turin"),
    ],
)
def test_a_wrong_word_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, out, err = attack(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
