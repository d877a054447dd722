"""Which processor a VM is shown: a model that its order names, or the one of the host that launched it.

Models are QEMU's, without their versions, each with what its line shows (``node.cpu_features``) and its signature. A VM
for which none is named is shown all that the host has which launched it, also when it has moved on, under the
signature of ``VCPU_MODEL``, which AMD's own scripts launch guests with: so its measurement is everywhere the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache

from node.cpu_features import CpuidSwitches, features_of
from node.cpuid_page import CpuidEntry, cpuid_entries
from node.generation import Generation
from node.hypervisor_port import LaunchRefused
from node.migration_refusal import MigrationRefusal
from node.product import Product
from node.vcpu_model import VcpuModel, vcpu_model

VCPU_MODEL = "EPYC-v4"
"""Whose signature a VM has that names no model."""

CPU_MODELS: Mapping[str, str] = {
    "EPYC": "Naples", "EPYC-Rome": "Rome", "EPYC-Milan": "Milan", "EPYC-Genoa": "Genoa", "EPYC-Turin": "Turin",
}  # fmt: skip
"""The line that each model is named for."""


def model_of(cpu_model: str) -> VcpuModel:
    """The signature that a VM with this model has, empty for none."""
    return vcpu_model(cpu_model or VCPU_MODEL)


def shown_by(product: Product) -> str:
    """What its guests were launched on: the product, and after a ``+`` each switch of ``cpuid`` that is on."""
    return "+".join([product.name, *(one.name for one in fields(product.cpuid) if getattr(product.cpuid, one.name))])


@cache
def features_shown(cpu_model: str, launched_on: str) -> frozenset[str]:
    """Names of what such a VM is shown, wherever it is; nothing for one that is shown what its host has.

    ``launched_on`` as ``shown_by`` has it.
    """
    if cpu_model:
        return features_of(CPU_MODELS[cpu_model])
    if not launched_on:
        return frozenset()
    product, *switches = launched_on.split("+")
    return features_of(product, CpuidSwitches(**dict.fromkeys(switches, True)))


def lacking(product: Product, features: frozenset[str]) -> tuple[str, ...]:
    """Those features that a product does not show, by name."""
    return tuple(sorted(features - features_of(product.name, product.cpuid)))


def shown_leaves(
    product: Product, generation: Generation, cpu_model: str = "", launched_on: str = ""
) -> tuple[CpuidEntry, ...]:
    """What CPUID tells a VM on a host. Raises LaunchRefused where it is to show more than the host has."""
    features = features_shown(cpu_model, launched_on)
    missing = lacking(product, features)
    if missing:
        raise LaunchRefused(f"{MigrationRefusal.CPU_FEATURES}: {product.name} has no {', '.join(missing)}")
    shown = features or features_of(product.name, product.cpuid)
    signature = model_of(cpu_model).cpuid_signature
    return _leaves(signature, generation, product.c_bit, product.reduced_bits, shown)


@cache
def _leaves(
    signature: int, generation: Generation, c_bit: int, reduced_bits: int, features: frozenset[str]
) -> tuple[CpuidEntry, ...]:
    return cpuid_entries(signature, generation, c_bit, reduced_bits, features)
