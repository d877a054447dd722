"""PVALIDATE, RMPADJUST and RMPQUERY judge VMPL and registers before they walk a table (APM volume 3; rmp.md, 4.3)."""

from __future__ import annotations

import pytest
from rmp_laboratory import laboratory

from node import operations as op
from node.rmp_faults import RmpCode

UNMAPPED = 1 << 30
PERMISSION, INPUT = int(RmpCode.FAIL_PERMISSION), int(RmpCode.FAIL_INPUT)
CASES = [
    (op.PValidate(UNMAPPED, 4096, False), 1, PERMISSION),
    (op.PValidate(UNMAPPED + 8, 4096, False), 0, INPUT),
    (op.RmpAdjust(UNMAPPED, 4096, False, 0, 1), 0, PERMISSION),
    (op.RmpAdjust(UNMAPPED, 4096, False, 7, 1), 0, INPUT),
    (op.RmpAdjust(UNMAPPED + 8, 4096, False, 1, 1), 0, INPUT),
    (op.RmpQuery(UNMAPPED, 0), 2, PERMISSION),
    (op.RmpQuery(UNMAPPED + 8, 3), 0, INPUT),
]


@pytest.mark.parametrize(("one", "vmpl", "code"), CASES, ids=repr)
def test_what_is_wrong_in_registers_is_said_of_pages_that_are_nowhere(one: object, vmpl: int, code: int) -> None:
    (answer,) = laboratory("Milan").guest("one", one, vmpl=vmpl)
    assert (answer if isinstance(answer, int) else answer.code) == code
