"""CPU models: the signatures that reach RDX of the first VMSA."""

import pytest
from sevsnpmeasure.vcpu_types import CPU_SIGS

from node.vcpu_model import VCPU_MODELS, UnknownVcpuModelError, VcpuModel, vcpu_model


@pytest.mark.parametrize("name", sorted(CPU_SIGS))
def test_signatures_agree_with_sev_snp_measure(name):
    assert vcpu_model(name).cpuid_signature == CPU_SIGS[name]


def test_a_family_below_sixteen_has_no_extended_part():
    assert VcpuModel("K8", 0xF, 0x41, 2).cpuid_signature == 0x0004_0F12


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(UnknownVcpuModelError, match="EPYC-Milan") as error:
        vcpu_model("Xeon")
    assert error.value.name == "Xeon"
    assert all(name == model.name for name, model in VCPU_MODELS.items())
