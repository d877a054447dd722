"""Memory and one device, for drivers that are tested without a board: what they yield is done here."""

from node import operations as op
from node.device_window import BAR_STRIDE, bar_gpa
from node.swiotlb import BounceArea
from tio.dma_port import DmaFault

MEMORY_BYTES = 4 << 20
PRIVATE, SHARED, BOOK = 0, 2 << 20, 3 << 20
"""Where a driver's own memory lies, the pool that devices reach, and the pool's book."""
SHARED_BYTES = 1 << 20


class Place:
    """A guest's memory with a device in it. With ``bounces`` the device reaches the pool alone."""

    def __init__(self, *, bounces):
        self.memory = bytearray(MEMORY_BYTES)
        self.bounces = bounces
        self.area = BounceArea(SHARED, SHARED_BYTES, BOOK, bounces)
        self.device = None
        self.private_accesses = 0
        self.spoil = {}
        """What a load of memory finds instead, by address: the host's doing."""

    # The device's way to memory.

    def read(self, address, length):
        self._check(address, length, write=False)
        return bytes(self.memory[address : address + length])

    def write(self, address, data):
        self._check(address, len(data), write=True)
        self.memory[address : address + len(data)] = data

    def _check(self, address, length, *, write):
        first, end = (SHARED, SHARED + SHARED_BYTES) if self.bounces else (0, MEMORY_BYTES)
        if not first <= address <= end - length:
            raise DmaFault(address, length, write=write)

    # The driver's operations.

    def run(self, steps):
        answers = None
        try:
            while True:
                batch = steps.send(answers)
                answers = tuple(self._do(one) for one in batch)
        except StopIteration as end:
            return end.value

    def _do(self, one):
        match one:
            case op.Read(gpa, length):
                return self.spoil.pop(gpa, bytes(self.memory[gpa : gpa + length]))
            case op.Write(gpa, data):
                self.memory[gpa : gpa + len(data)] = data
                return None
            case op.Copy(source, target, length):
                data = bytes(self.memory[source : source + length])
                self.memory[target : target + length] = data
                return data
            case op.MmioLoad(gpa, length, private):
                self.private_accesses += private
                bar, offset = divmod(gpa - bar_gpa(0, 0), BAR_STRIDE)
                return self.device.load(bar, offset, length)
            case op.MmioStore(gpa, value, length, private):
                self.private_accesses += private
                bar, offset = divmod(gpa - bar_gpa(0, 0), BAR_STRIDE)
                self.device.store(bar, offset, value, length)
                return None
        raise AssertionError(one)
