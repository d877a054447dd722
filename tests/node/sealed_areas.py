"""Save areas of SEV-ES guests that no firmware launched."""

from node.board import Board

REGION = 48 << 20
"""Where nothing else lies on the boards of these tests."""


def seal(board: Board, spa: int, asid: int) -> None:
    """Have hardware keep the value of a save area, in a region that it is given first."""
    if not board.bus.seals._length:
        board.bus.take_trusted_region(REGION, 1 << 20)
    board.bus.seal_save_area(spa, asid)
