"""What a VM's software is to be made of, as its host knows it: one object for a VM that comes again the same."""

from __future__ import annotations

from node.firmware_image import FirmwareImage
from node.guest import GuestSpec
from node.identity_cache import RecordsById
from node.svsm_memory import SvsmGuest
from node.tenant import TenantSpec

_known = RecordsById[tuple[GuestSpec, FirmwareImage, TenantSpec]]()


def tenant_order(
    spec: GuestSpec, launched: tuple[int, ...], reset_rips: tuple[int, ...], image: FirmwareImage,
    svsm: SvsmGuest | None,
) -> TenantSpec:  # fmt: skip
    """That of a VM that was launched so, above ``svsm`` if there is one."""
    found = _known.get(id(spec))
    if found is not None and found[1] is image and svsm is None:
        order = found[2]
        if order.launched == launched and order.reset_rips == reset_rips:
            return order
    order = TenantSpec(
        spec.name, spec.generation, spec.memory, spec.program, spec.seed, launched, reset_rips,
        spec.sev_features, svsm, image.cpuid_gpa, spec.kernel, image.secrets_gpa, spec.devices,
        (spec.migration_agent or spec.migration_handler) and bool(spec.devices),
    )  # fmt: skip
    if svsm is None:
        _known.keep((spec, image, order))
    return order
