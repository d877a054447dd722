"""What is not certain of the RMP, each doubt a switch that a product's row or a test may set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RmpSwitches:
    """Switches of the RMP; the defaults are what seems likelier.

    ``immutable_keeps_validated``: VALIDATED, VMSA and the permissions survive an
    update that changes nothing but IMMUTABLE, because the Pre-Swap state could
    not come about otherwise. No public text says so; with False such an update
    clears them like any other.

    ``pvalidate_faults_below_vmpl0``: PVALIDATE at VMPL 1 to 3 is #GP; with False
    it returns FAIL_PERMISSION, as VeriSMo models it.

    ``count_skips_first``: SUBPAGE_COUNT counts the assigned 4 KiB pages of a 2 MiB
    region besides the first, whose own entry says ASSIGNED. Inferred: 512 does not
    fit nine bits. With False the first counts too, and 512 reads as zero.

    ``shared_reads_checked``: a guest's shared read of an assigned page faults as
    VeriSMo has it; with False it returns ciphertext, as recollected of the APM.

    ``sev_reads_checked``: a private read, fetch or walk of a guest that is SEV or SEV-ES but not SNP-active faults
    on an assigned page, even with the owner's ASID: only an SNP-active guest of that ASID may use one. Inferred: no
    text at hand speaks of such reads, but ES and SNP guests share ASIDs below MinSEVASID, and else only the value
    of its registers would keep a control block of SEV-ES with an SNP guest's ASID from that guest's plaintext. With
    False the read decrypts.

    ``dma_reads_checked``: a device's read of an assigned page is refused like a
    write (Linux: the SNP IOMMU lets DMA touch shared memory only); with False it
    gets ciphertext.

    ``vmrun_splits_asids``: while ciphertext is hidden, VMRUN refuses an SNP guest with an ASID above MAX_SNP_ASID
    and one of SEV-ES with an ASID up to it (VMEXIT_INVALID). With False only firmware goes by the split, when it
    activates an ASID: no text has VMRUN ask for what SNP_INIT_EX was told.

    ``nested_size_checked``: PVALIDATE and RMPADJUST of 4 KiB in a nested mapping of 2 MiB fault with SIZEM, whatever
    the RMP's entry is: one list of their checks names the nested mapping beside it. With False the entry's size alone
    counts, as in accesses, where hardware takes the smaller of both.

    ``query_needs_validated``: RMPQUERY of a page that is not validated is #VC 404 as
    for RMPADJUST; with False it answers. The published description of the
    instruction is another's.

    ``rmpread``: the part has RMPREAD. What it says of a page inside a 2 MiB entry (that entry, as
    here, or the page's own slot) and when it sets the region's bit (any page assigned) is inferred.

    ``segmented``: firmware lays the table in segments (RMP_CFG), where the part can.

    ``asids_of_the_part``: RMPUPDATE refuses an ASID that the part does not have (CPUID Fn8000_001F ECX), FAIL_INPUT, as
    one that no entry can hold. Inferred: public lists of what it refuses say "too large". With False whatever fits in
    an entry is taken; no VMRUN comes with it, so only its host loses a page by it.

    ``pages_of_memory``: RMPUPDATE refuses pages with FAIL_INPUT that the table has entries for and where there is no
    memory, nor MMIO that ``mmio`` names: a table's end is rounded up. With False, as public descriptions have it, the
    table's end alone counts. Then such a page has an entry like any other, and an access to it finds nothing.

    ``mmio``: 64-bit MMIO that the table covers, as (SPA, length): firmware's option that AMD asks for with TIO,
    off by default. How the table holds it is not published; here as it holds memory. MMIO below 4 GiB is not covered.

    ``hidden_form``: the entries of a segmented table lie in DRAM in a form that nobody has published, and that
    only the RMP's own instructions show (``node.rmp_hidden_form``); with False in that of Zen 3 and 4.

    ``init_needs_vmpl_en``: SNP_INIT_EX refuses with INVALID_CONFIG where a core lacks VMPL_EN, as one list of what it
    asks of SYSCFG has it and hypervisors set it. With False it does not look, as another list that leaves it out.

    ``init_needs_memory_encryption``: the same of MemEncryptionModeEn, which the first list names too and APM volume 2,
    15.34.3 wants for SEV. Off, because hosts of mode ``none`` show the bit clear and yet run SEV guests: here it says
    that the hypervisor may use a C-bit of its own. With True such hosts have no SNP.

    ``under_host_key``: the table's bytes lie in DRAM under the host's own key wherever the host has
    one; with False only where everything does (TSME). No public text says which.
    """

    immutable_keeps_validated: bool = True
    pvalidate_faults_below_vmpl0: bool = False
    count_skips_first: bool = True
    shared_reads_checked: bool = False
    sev_reads_checked: bool = True
    dma_reads_checked: bool = True
    vmrun_splits_asids: bool = False
    nested_size_checked: bool = False
    query_needs_validated: bool = True
    segmented: bool = False
    rmpread: bool = False
    asids_of_the_part: bool = True
    pages_of_memory: bool = False
    mmio: tuple[int, int] = (0, 0)
    hidden_form: bool = False
    init_needs_vmpl_en: bool = True
    init_needs_memory_encryption: bool = False
    under_host_key: bool = False
