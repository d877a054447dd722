"""Which processor a guest is shown: what its order names, or what it was launched on, and never more than there is."""

from dataclasses import replace

import pytest
from overheard_hypervisors import overheard
from sevsnpmeasure import guest as reference
from sevsnpmeasure.vcpu_types import CPU_SIGS
from toy_guests import COSTS, IMAGE, SECOND, guest_spec, make_host, rest, run, script

from node.cpu_features import CpuidSwitches, features_of
from node.cpu_model import CPU_MODELS, VCPU_MODEL, features_shown, lacking, shown_by
from node.cpuid_page import CpuidEntry
from node.generation import Generation
from node.guest import GuestState
from node.host import Host, HostSpec
from node.operations import Cpuid, Sleep
from node.product import PRODUCTS
from node.vcpu_model import vcpu_model

PLAIN, ES, SNP = Generation.PLAIN, Generation.SEV_ES, Generation.SEV_SNP
AVX_512F, INVPCID = 1 << 16, 1 << 10
"""Of EBX of function 7: on Genoa, and on Milan (AMD PPRs of families 19h models 11h and 01h)."""
SIGNATURES = {"": 0x0080_0F12, "EPYC": 0x0080_0F12, "EPYC-Milan": 0x00A0_0F11, "EPYC-Genoa": 0x00A1_0F10}
"""CPUID 1 EAX of QEMU's models; those of sev-snp-measure are in ``test_vcpu_model``."""


def asked(product, generation, **shown):
    """What a guest on a host finds: its signature, and EBX of function 7."""
    told = []

    def ask(_place, _registers):
        told.extend((yield (Cpuid(1), Cpuid(7))))
        return Sleep(10**18)

    host = make_host({"ask": script(ask)}, product=product)
    host.launch(replace(guest_spec("vm", generation, "ask"), **shown), lambda _: None, running=True)
    run(host, SECOND)
    assert host.guests["vm"].state is GuestState.RUNNING, host.guests["vm"].reason
    return told[0].eax, told[1].ebx & (AVX_512F | INVPCID)


@pytest.mark.parametrize("generation", [PLAIN, SNP])
@pytest.mark.parametrize(
    ("product", "shown", "features"),
    [
        ("Genoa", {}, AVX_512F | INVPCID),
        ("Genoa", {"launched_on": "Milan"}, INVPCID),
        ("Genoa", {"cpu_model": "EPYC-Milan"}, INVPCID),
        ("Genoa", {"cpu_model": "EPYC-Milan", "launched_on": "Genoa"}, INVPCID),
        ("Genoa", {"cpu_model": "EPYC"}, 0),
        ("Turin", {"cpu_model": "EPYC-Genoa"}, AVX_512F | INVPCID),
        ("Milan", {}, INVPCID),
    ],
)
def test_a_guest_finds_the_features_and_the_signature_of_what_it_is_shown(product, shown, features, generation):
    assert asked(product, generation, **shown) == (SIGNATURES[shown.get("cpu_model", "")], features)


def test_a_hypervisor_in_a_process_of_its_own_shows_the_same():
    _, remote = overheard(IMAGE)
    spec = HostSpec("far", PRODUCTS["Genoa"], 4 << 30, 100, 7, 60 * SECOND)
    host = Host(spec, {"rest": script(rest)}, {"auto": IMAGE}, COSTS, hypervisor=remote)
    wanted = replace(guest_spec("vm", SNP), cpu_model="EPYC-Milan")
    host.launch(wanted, lambda _: None, running=True)
    here = make_host(product="Genoa")
    here.launch(wanted, lambda _: None, running=True)
    assert host.guests["vm"].launch_digest == here.guests["vm"].launch_digest != ""
    told = []
    host.launch(replace(guest_spec("other", SNP), cpu_model="EPYC-Turin"), told.append)
    run(host)
    assert [(guest.state, "Genoa has no avx-vnni" in guest.reason) for guest in told] == [(GuestState.REFUSED, True)]


@pytest.mark.parametrize("shown", [{"cpu_model": "EPYC-Genoa"}, {"launched_on": "Turin"}])
def test_a_host_that_lacks_it_refuses_with_everything_given_back(shown):
    host, told = make_host(), []
    before = host.hypervisor.frames.used_bytes
    host.launch(replace(guest_spec("vm", SNP), **shown), told.append)
    run(host)
    assert [guest.state for guest in told] == [GuestState.REFUSED]
    assert "Milan has no" in told[0].reason
    assert "avx512f" in told[0].reason
    assert host.hypervisor.frames.used_bytes == before
    wrong = []
    host.arrivals.prepare(replace(guest_spec("other", PLAIN), **shown), lambda *what: wrong.append(what[0]))
    run(host, host.now_ns + SECOND)
    assert "Milan has no" in wrong[0]
    assert "other" not in host.guests
    assert host.hypervisor.frames.used_bytes == before


@pytest.mark.parametrize(("ebx", "state"), [(INVPCID, GuestState.RUNNING), (AVX_512F, GuestState.REFUSED)])
def test_firmware_launches_no_guest_that_would_be_shown_more_than_the_processor_has(ebx, state):
    """A Milan's hypervisor gives a CPUID page of its own making; it has INVPCID and no AVX-512."""
    host, told = make_host(), []
    before = host.hypervisor.frames.used_bytes
    host.hypervisor._ghcb.leaves[SNP] = (CpuidEntry(7, ebx=ebx),)
    host.launch(guest_spec("vm", SNP), told.append)
    run(host)
    assert [guest.state for guest in told] == [state]
    refused = state is GuestState.REFUSED
    assert ("SNP_LAUNCH_UPDATE: INVALID_PARAM" in told[0].reason) is refused
    assert (host.hypervisor.frames.used_bytes == before) is refused  # Also of the pages that went in with that one.


def test_what_a_host_s_software_hides_a_guest_of_another_cannot_be_shown_there():
    older = replace(PRODUCTS["Rome"], cpuid=CpuidSwitches(xsaves_before_milan=True))
    assert lacking(PRODUCTS["Rome"], features_shown("EPYC-Rome", "")) == ()
    assert lacking(older, features_shown("EPYC-Rome", "")) == ()
    assert lacking(PRODUCTS["Rome"], features_shown("", "Milan")) == (
        "amd-psfd", "erms", "fsrm", "invpcid", "lfence-always-serializing", "no-nested-data-bp", "null-sel-clr-base",
        "pcid", "pku", "stibp-always-on", "vaes", "vpclmulqdq", "xcr0-pkru", "xsaves",
    )  # fmt: skip
    assert "xsaves" not in lacking(older, features_shown("", "Milan"))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_guest_launched_on_a_host_is_shown_elsewhere_what_that_host_s_software_shows(name):
    """CET_SS is function 7, ECX bit 7, of Milan and later (APM volume 3, appendix E)."""
    for switches in (CpuidSwitches(), CpuidSwitches(True, True), CpuidSwitches(shadow_stacks=True)):
        product = replace(PRODUCTS[name], cpuid=switches)
        shown = features_shown("", shown_by(product))
        assert shown == features_of(name, switches)
        assert lacking(product, shown) == ()
        has_them = name not in ("Naples", "Rome")
        assert ("shstk" in lacking(PRODUCTS[name], shown)) == (switches.shadow_stacks and has_them)


def test_the_signature_of_a_model_is_measured_as_sev_snp_measure_has_it(tmp_path):
    image = tmp_path / "firmware.fd"
    image.write_bytes(IMAGE.data)
    host = make_host(product="Genoa")
    for generation, digest in ((SNP, reference.snp_calc_launch_digest), (ES, reference.seves_calc_launch_digest)):
        spec = replace(guest_spec(generation.name, generation), cpu_model="EPYC-Genoa")
        host.launch(spec, lambda _: None, running=True)
        ends = (0x1, "") if generation is SNP else ()
        expected = digest(1, CPU_SIGS["EPYC-Genoa"], str(image), None, None, None, *ends)
        assert host.guests[generation.name].launch_digest == expected.hex()


@pytest.mark.parametrize("model", CPU_MODELS)
def test_models_are_those_of_qemu_without_their_versions(model):
    assert vcpu_model(model).cpuid_signature == vcpu_model(f"{model}-v1").cpuid_signature
    assert vcpu_model(VCPU_MODEL).cpuid_signature == vcpu_model("EPYC").cpuid_signature
