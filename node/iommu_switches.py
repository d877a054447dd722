"""What is not certain of the IOMMU, each doubt a switch that a test may set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IommuSwitches:
    """Switches of the IOMMU; the defaults are what seems likelier.

    ``invalid_entry_blocks``: a request of a device whose entry has V clear is an
    IO_PAGE_FAULT. With False it passes untranslated, as recollected of the
    specification's table of feature enablement; the RMP is asked all the same.

    ``large_mappings_whole``: an access through a mapping of 2 MiB or 1 GiB needs every
    page of its 2 MiB to be the hypervisor's, as a store of the host through such a
    mapping does. With False only the pages accessed count.

    ``aborted_reads_are_ones``: a device whose read was refused gets bytes of all ones. With
    False its request is completed with an error.
    """

    invalid_entry_blocks: bool = True
    large_mappings_whole: bool = True
    aborted_reads_are_ones: bool = False
