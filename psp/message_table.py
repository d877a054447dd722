"""Which guest messages firmware knows, how long they are in each version, and what answers them."""

from __future__ import annotations

from collections.abc import Mapping

from psp.cpuid_messages import CpuidMessages
from psp.guest_message import MessageType
from psp.guest_requests import MessageRow
from psp.key_messages import KEY_REQUEST_BYTES, KeyMessages
from psp.migration_messages import MigrationMessages
from psp.report_messages import ReportMessages, ReportRequest
from psp.secure_tsc import TSC_INFO_BYTES, tsc_info
from psp.system_bus import SystemBus


def message_rows(
    bus: SystemBus, keys: KeyMessages, reports: ReportMessages, migration: MigrationMessages
) -> Mapping[int, MessageRow]:
    """The table (SEV-SNP firmware ABI, table 101)."""
    return {
        MessageType.CPUID_REQ: MessageRow({1: None}, CpuidMessages(bus).answer),
        MessageType.KEY_REQ: MessageRow(KEY_REQUEST_BYTES, keys.answer),
        MessageType.REPORT_REQ: MessageRow({1: ReportRequest.SIZE}, reports.answer),
        MessageType.TSC_INFO_REQ: MessageRow({1: TSC_INFO_BYTES}, tsc_info),
        **migration.rows,
    }
