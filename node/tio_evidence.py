"""What a hypervisor hands a guest of a trusted device's evidence: a table of GUIDs, as certificates have one.

Source: ``spec/tio/tio-overview.md``, section 5 (patches that are not merged).
"""

from uuid import UUID

CERTIFICATES = UUID("078ccb75-2644-49e8-afe7-5686c5cf72f1")
MEASUREMENTS = UUID("5caa80c6-12ef-401a-b364-ec59a93abe3f")
REPORT = UUID("70dc5b0e-0cc0-4cd5-97bb-ff0ba25bf320")
