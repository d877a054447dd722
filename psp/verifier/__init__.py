"""The verifier: whether to believe an attestation report, judged from bytes alone.

It belongs to whoever relies on a guest, not to the chip, so it shares nothing with the code
that builds reports or certificates: it imports the standard library, ``cryptography`` and
itself. Every refusal is ``Rejected`` with one ``Reason`` of a closed table.

Sources: SEV-SNP firmware ABI (56860) for reports, KDS specification (57230) for certificates,
RFC 5280 and RFC 4055.
"""

from psp.verifier.assemble import assemble
from psp.verifier.expectations import NONCE_BYTES, Expectations
from psp.verifier.pem import der_blocks
from psp.verifier.product_line import AMD_ROOTS, LINES, PRODUCT_LINES
from psp.verifier.reasons import Reason, Rejected, Stage, printable
from psp.verifier.report import Report
from psp.verifier.report_data import bound_report_data
from psp.verifier.tcb_version import COMPONENTS, higher_levels, spelled
from psp.verifier.verify import Evidence, Verdict, reports_judged, root_of, verify

__all__ = [
    "AMD_ROOTS",
    "COMPONENTS",
    "LINES",
    "NONCE_BYTES",
    "PRODUCT_LINES",
    "Evidence",
    "Expectations",
    "Reason",
    "Rejected",
    "Report",
    "Stage",
    "Verdict",
    "assemble",
    "bound_report_data",
    "der_blocks",
    "higher_levels",
    "printable",
    "reports_judged",
    "root_of",
    "spelled",
    "verify",
]
