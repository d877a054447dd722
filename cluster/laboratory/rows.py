"""Rows of the attack matrix, and the programs that carry them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.laboratory.device_rows import DEVICE_ROWS
from cluster.laboratory.interface import Interface
from cluster.laboratory.lying_hypervisor import DenyingHypervisor
from cluster.laboratory.migration_rows import MIGRATION_ROWS
from cluster.laboratory.permuting_hypervisor import PermutingHypervisor
from cluster.laboratory.row import Row
from cluster.laboratory.scene import GHOST_LINE, OTHER_CARD, VICTIM, Cast, Setting, act_out, code_gpa, status_gpa
from cluster.oracle.holdings import Measure
from cluster.oracle.verdict import Aim, Verdict, judge
from node.card_slot import CardSlot
from workloads.attacks import (
    alias,
    block_move,
    bounced,
    bus_tap,
    cache_drop,
    ciphertext_dictionary,
    confused_deputy,
    crossline,
    dimm,
    dma,
    extracted_keys,
    false_cpuid,
    forged_measurement,
    greedy_tenant,
    injection,
    invalid_curve,
    iommu_log,
    message_replay,
    neighbours,
    nested_remap,
    old_firmware,
    old_report,
    page_move,
    power,
    prime_and_probe,
    read_memory,
    registers,
    rmp_forgery,
    side_channels,
    stack_engine,
    tlb_poisoning,
    write_memory,
    wrong_launch,
)
from workloads.attacks.service import DIVIDE, OVERFLOW

_LIED_TO = Cast(hypervisor=DenyingHypervisor)

ROWS: Mapping[str, Row] = {
    "01": Row((read_memory.read_private_page,)),
    "02": Row((registers.read_at_exit,), victim="service"),
    "03": Row((registers.grant_the_login, registers.turn_back), victim="service"),
    "04": Row((registers.put_back_all,), victim="service"),
    "05a": Row((dma.read_by_device,), needs=Interface.WAY_PAST_THE_KEY),
    "05b": Row((dma.read_by_device_with_c_bit,), needs=Interface.C_BIT),
    "05c": Row((dma.read_by_device,), needs=Interface.TRANSPARENT_KEY),
    "06": Row((dma.write_by_device,)),
    "07": Row((dimm.cold_boot,)),
    "08": Row((dimm.change_dram,)),
    "09": Row((write_memory.write_junk,)),
    "10": Row((write_memory.replay,)),
    "11": Row((nested_remap.merge_pages,)),
    "12": Row((nested_remap.serve_the_secret,)),
    "13": Row((nested_remap.fresh_page,)),
    "14": Row((nested_remap.fresh_page,), needs=Interface.PAGE_VALIDATION, cast=Cast(tracks_validation=False)),
    "15": Row((nested_remap.shared_page, nested_remap.page_of_another)),
    "16a": Row((block_move.place_chosen_text,), chosen_status=block_move.CHOSEN),
    "16b": Row((write_memory.move_blocks,)),
    "17": Row((bounced.swap_what_is_sent,)),
    "18": Row((bounced.send_code,), chosen_code=bounced.CODE),
    "19": Row(
        (write_memory.wait_for_it,),
        needs=Interface.LAUNCH_MEASUREMENT,
        cast=Cast(hypervisor=PermutingHypervisor),
        victim="booted",
    ),
    "20": Row((crossline.load_entries,), needs=Interface.GUEST_KEY, page_tables=True),
    "21": Row((crossline.run_an_instruction,), needs=Interface.GUEST_KEY, page_tables=True),
    "22": Row((tlb_poisoning.share_a_thread,), tlb_entries=64, two_processes=True),
    "23": Row((false_cpuid.share_and_read,), cast=_LIED_TO, victim="newcomer"),
    "24a": Row((injection.system_call,), victim="service"),
    "24b": Row((injection.signal(DIVIDE), injection.signal(OVERFLOW)), victim="service"),
    "24c": Row((injection.masked_tick,), victim="service"),
    "25a": Row((injection.take_rax,), needs=Interface.VMM_COMMUNICATION, victim="service", leak_bytes=8),
    "25b": Row((injection.read_by_forged_stores,), needs=Interface.VMM_COMMUNICATION, victim="service"),
    "26a": Row((injection.alter_breakpoints,), victim="service"),
    "26b": Row((injection.swallow_debug_exception,), victim="service"),
    "27": Row((side_channels.poison_predictor,), victim="chooser", cache_timing=True),
    "28": Row((side_channels.trace_faults,), victim="chooser"),
    # A tenant that computes leaves the sets alone, in which its own pages lie, too.
    "29a": Row((prime_and_probe.time_two_sets,), victim="chooser", cache_timing=True, tenant_spins=True),
    "29b": Row((power.read_energy,), victim="chooser"),
    "29c": Row((side_channels.count_branches,), victim="chooser"),
    "30": Row((ciphertext_dictionary.compare_registers,), needs=Interface.ENCRYPTED_REGISTERS),
    "31": Row((ciphertext_dictionary.compare_memory,), needs=Interface.CIPHERTEXT),
    "32": Row((page_move.guess_characters,), needs=Interface.GUEST_KEY, victim="console"),
    "33": Row((cache_drop.drop_dirty_lines,), caches=True),
    "34": Row((stack_engine.shift_stack,), victim="caller"),
    "35a": Row((alias.replay_through_ghost,), ghost_line=GHOST_LINE),
    "35b": Row((forged_measurement.through_ghost,), needs=Interface.CONTEXT_PAGE, ghost_line=GHOST_LINE),
    "36": Row(
        (rmp_forgery.turn_debugging_on,), needs=Interface.CONTEXT_PAGE, caches=True,
        prelude=rmp_forgery.store_before_init,
    ),
    "37": Row(
        (rmp_forgery.turn_debugging_on,), needs=Interface.CONTEXT_PAGE, fabric_locked=False,
        prelude=rmp_forgery.route_to_nowhere,
    ),
    "38": Row((confused_deputy.turn_debugging_on,), needs=Interface.CONTEXT_PAGE),
    "39": Row((alias.replay_through_interposer,)),
    "40": Row((bus_tap.listen,)),
    "41": Row((iommu_log.record_into_a_page,), prelude=iommu_log.short_log),
    "42": Row((greedy_tenant.never_yield,), tenant_spins=True),
    "43": Row((nested_remap.take_away,)),
    "44": Row((neighbours.wrong_mapping,)),
    "45": Row((neighbours.freed_page,)),
    "46": Row((neighbours.two_contexts,)),
    "47": Row((nested_remap.svsm_page_to_its_guest,), needs=Interface.VMPLS, svsm=True),
    "48": Row((false_cpuid.share_and_read,), cast=_LIED_TO, victim="newcomer"),
    "50": Row((old_firmware.extract_keys,), old_firmware=True, habits={}),
    "51": Row((old_report.replay,), habits={}),
    "52": Row((extracted_keys.forge_with_chip_key,), habits={}),
    "53a": Row((wrong_launch.allow_debugging,), habits={}),
    "53b": Row((wrong_launch.allow_debugging,), habits={"debuggable": True}),
    "54a": Row((wrong_launch.another_image,), habits={}),
    "54b": Row(
        (wrong_launch.strangers_id_block, wrong_launch.lower_vmpl), needs=Interface.CONTEXT_PAGE,
        habits={"measurement": False, "id_key": True},
    ),
    "61": Row((old_firmware.launch_there,), old_firmware=True, habits={}),
    "63": Row((old_firmware.relay_request,), needs=Interface.CONTEXT_PAGE, old_firmware=True, habits={}),
    "64": Row((invalid_curve.recover_the_scalar,), needs=Interface.PDH_LAUNCH, platform_key=True),
    "62": Row(
        (message_replay.send_again, message_replay.serve_old_answer), needs=Interface.CONTEXT_PAGE,
        victim="petitioner",
    ),
    "82a": Row((confused_deputy.write_by_device,), needs=Interface.CONTEXT_PAGE),
    "82b": Row((confused_deputy.forge_entries,), needs=Interface.CONTEXT_PAGE),
    **MIGRATION_ROWS,
    **DEVICE_ROWS,
}  # fmt: skip
"""By id of the matrix."""


def verdicts(row: str, setting: Setting) -> list[Verdict]:
    """Carry out each attack of a row on a host of its own, and judge it."""
    line = ROWS[row]
    platform = setting.platform
    where = replace(
        setting,
        platform=replace(
            platform,
            ghost_line=line.ghost_line,
            caches=platform.caches or line.caches,
            cache_timing=platform.cache_timing or line.cache_timing,
            tlb_entries=line.tlb_entries or platform.tlb_entries,
            fabric_locked=line.fabric_locked,
        ),
        page_tables=line.page_tables,
        two_processes=line.two_processes,
        tenant_spins=line.tenant_spins,
        prelude=line.prelude,
        svsm=line.svsm,
        victim=line.victim,
        old_firmware=line.old_firmware,
        owner=replace(setting.owner, **(line.habits or {})),
        platform_key=line.platform_key,
        outbox_is_secret=line.outbox_is_secret,
        cards=_cards(line, setting),
        tenant_has_card=line.tenant_has_card,
        moves=line.moves,
        open_without_key=line.open_without_key,
        sev_policy=setting.sev_policy | line.sev_policy,
        ways=replace(setting.ways, **(line.ways or {})),
    )
    measure = Measure(line.leak_bytes)
    found = [act_out(where, attack, line.needs, line.cast) for attack in line.attacks]
    return [judge(*one, measure, _aim(line)) for one in found]


def _aim(line: Row) -> Aim | None:
    if line.chosen_code:
        return Aim(VICTIM, code_gpa(), line.chosen_code)
    return Aim(VICTIM, status_gpa(), line.chosen_status) if line.chosen_status else None


def _cards(line: Row, setting: Setting) -> tuple[CardSlot, ...]:
    if line.card is None:
        return ()
    return replace(line.card, scrubs=setting.device_scrubs), replace(OTHER_CARD, scrubs=setting.device_scrubs)
