"""URLs are those of AMD's service, and what is near them is refused with what was expected."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.key_server.key_urls import Asked, BadUrlError, Kind, UnknownUrlError, parsed, vcek_url, vlek_url
from psp.product_line import PRODUCT_LINES

MILAN, GENOA, TURIN = (PRODUCT_LINES[name] for name in ("Milan", "Genoa", "Turin"))
POINT, SHORT = bytes(range(64)), bytes(range(8))
SPLS = "blSPL=02&teeSPL=00&snpSPL=05&ucodeSPL=68"


def test_the_urls_of_virtee_s_and_google_s_clients():
    assert parsed(f"/vcek/v1/Milan/{POINT.hex()}?{SPLS}") == Asked(Kind.VCEK, MILAN, POINT, 0x44050000_00000002)
    assert vcek_url(MILAN, POINT, 0x44050000_00000002) == f"/vcek/v1/Milan/{POINT.hex()}?{SPLS}"
    turin = f"/vcek/v1/Turin/{SHORT.hex()}?fmcSPL=01&{SPLS}"
    assert parsed(turin) == Asked(Kind.VCEK, TURIN, SHORT, 0x44000000_05000201)
    assert vcek_url(TURIN, SHORT, 0x44000000_05000201) == turin
    assert parsed(f"/vlek/v1/Genoa/cert?{SPLS}") == Asked(Kind.VLEK, GENOA, tcb=0x44050000_00000002)
    assert vlek_url(GENOA, 0x44050000_00000002) == f"/vlek/v1/Genoa/cert?{SPLS}"
    assert parsed("/vcek/v1/Genoa/cert_chain") == Asked(Kind.VCEK_CHAIN, GENOA)
    assert parsed("/vlek/v1/Milan/cert_chain") == Asked(Kind.VLEK_CHAIN, MILAN)
    assert parsed("/vcek/v1/Turin/crl") == parsed("/vlek/v1/Turin/crl") == Asked(Kind.CRL, TURIN)
    assert parsed(f"/cek/id/{POINT.hex()}") == Asked(Kind.CEK, chip_id=POINT)


@pytest.mark.parametrize("spls", ["ucodeSPL=68&snpSPL=5&teeSPL=0&blSPL=2", "blSPL=002&teeSPL=0&snpSPL=05&ucodeSPL=068"])
def test_numbers_stand_in_any_order_with_or_without_leading_zeros(spls):
    asked = parsed(f"/vcek/v1/Milan/{POINT.hex().upper()}?{spls}")
    assert asked == parsed(f"/vcek/v1/Milan/{POINT.hex()}?{SPLS}")


VCEK = f"/vcek/v1/Milan/{POINT.hex()}"
BAD = {
    f"{VCEK}?{SPLS[:-12]}": "ucodeSPL: expected a number from 0 to 255, got ''",
    f"{VCEK}": "blSPL: expected",
    f"{VCEK}?{SPLS}&fmcSPL=1": "expected blSPL, teeSPL, snpSPL, ucodeSPL, got 'fmcSPL'",
    f"{VCEK}?{SPLS}&blSPL=02": "each number once",
    f"{VCEK}?{SPLS}1": "ucodeSPL: expected a number from 0 to 255, got '681'",
    f"{VCEK}?blSPL=128&teeSPL=0&snpSPL=5&ucodeSPL=68": "blSPL: expected a number from 0 to 127, got '128'",
    f"{VCEK}?blSPL=-1&teeSPL=0&snpSPL=5&ucodeSPL=68": "blSPL: expected",
    f"{VCEK}?blSPL=%C2%B2&teeSPL=0&snpSPL=5&ucodeSPL=68": "blSPL: expected",
    f"{VCEK}?blSPL": "query: expected name=value",
    f"{VCEK}?{'&'.join(f'a{n}=1' for n in range(99))}": "query: expected name=value, a few",
    f"{VCEK}00?{SPLS}": "up to 128 hexadecimal digits",
    f"/vcek/v1/Milan/{SHORT.hex()}?{SPLS}": "expected 128 digits for Milan, got 16",
    f"/vcek/v1/Turin/{POINT.hex()}?fmcSPL=1&{SPLS}": "expected 16 digits for Turin, got 128",
    f"/vcek/v1/Turin/{SHORT.hex()}?{SPLS}": "fmcSPL: expected",
    f"/vcek/v1/Milan/xyz?{SPLS}": "chip id: expected",
    "/cek/id/": "chip id: expected",
    "//[/vcek": "query: expected",
}


@pytest.mark.parametrize("url", BAD)
def test_what_asks_for_nothing_is_refused_with_what_was_expected(url):
    with pytest.raises(BadUrlError) as refused:
        parsed(url)
    assert BAD[url] in str(refused.value)
    assert len(str(refused.value)) < 160


@pytest.mark.parametrize(
    "url",
    ["/", "", "/vcek/v1/Rome/crl", "/vcek/v1/milan/crl", "/vcek/v2/Milan/crl", "/vlek/v1/Milan/other", "/cek/id",
     "/vcek/v1/Milan/crl/", "/vcek/v1/Bergamo/cert_chain", "/../etc/passwd"],
)  # fmt: skip
def test_other_paths_are_none_of_the_service_s(url):
    with pytest.raises(UnknownUrlError):
        parsed(url)


@given(st.text(alphabet="/vcekl1MilanTur?&=%0aSPL[]#:@", max_size=60))
@settings(max_examples=60)
def test_any_target_is_understood_or_refused_by_these_errors(text):
    try:
        parsed("/" + text)
    except (BadUrlError, UnknownUrlError) as error:
        assert "\n" not in str(error)
