"""A guest's GPU: products of matrices through bounce buffers or straight, and a device that lies."""

import numpy as np
import pytest
from toy_devices import MEMORY_BYTES, PRIVATE, SHARED, SHARED_BYTES, Place

from node.device_window import DeviceSilent, DeviceWindow
from node.guest_gpu import GpuUntrusted, GuestGpu
from node.operations import Fault, FaultKind
from node.swiotlb import BounceFault
from tio.gpu import Gpu

DATA = 1 << 20


def made(*, bounces):
    place = Place(bounces=bounces)
    place.device = Gpu(place, 1 << 20)
    gpu = GuestGpu(place.area, DeviceWindow(0, private=not bounces), PRIVATE)
    place.run(place.area.open())
    assert place.run(gpu.start()) == 1 << 20
    return place, gpu


@pytest.mark.parametrize("bounces", [False, True])
def test_a_product_is_what_the_matrices_make(bounces):
    place, gpu = made(bounces=bounces)
    one, other = (np.arange(start, start + 900, dtype="<i4").reshape(30, 30) for start in (5, 7000))
    place.memory[DATA : DATA + 3600] = one.tobytes()
    place.memory[DATA + 3600 : DATA + 7200] = other.tobytes()
    for _ in range(20):  # The ring goes round.
        place.run(gpu.copy_in(DATA, 64, 7200))
        place.run(gpu.multiply(64, 64 + 3600, 16384, (30, 30, 30)))
        place.run(gpu.copy_out(16384, DATA + 10_000, 3600))
        assert place.memory[DATA + 10_000 : DATA + 13_600] == (one @ other).tobytes()
    secret_in_pool = other.tobytes() in place.memory[SHARED : SHARED + SHARED_BYTES]
    assert secret_in_pool == bounces
    assert bool(place.private_accesses) != bounces


@pytest.mark.parametrize("bounces", [False, True])
def test_a_copy_longer_than_a_mapping_is_cut(bounces):
    place, gpu = made(bounces=bounces)
    data = np.random.default_rng(1).bytes(300_000)
    place.memory[DATA : DATA + len(data)] = data
    place.run(gpu.copy_in(DATA, 0, len(data)))
    place.memory[DATA : DATA + len(data)] = bytes(len(data))
    place.run(gpu.copy_out(0, DATA, len(data)))
    assert place.memory[DATA : DATA + len(data)] == data


@pytest.mark.parametrize("fence", [bytes(8), b"\1\0\0\0\4\0\0\0", b"\2\0\0\0\0\0\0\0"])
def test_a_fence_of_another_command_or_of_a_failure_is_not_believed(fence):
    place, gpu = made(bounces=True)
    place.spoil[SHARED + 4096] = fence
    with pytest.raises(GpuUntrusted):
        place.run(gpu.copy_in(DATA, 0, 64))
    place.run(gpu.copy_in(DATA, 0, 64))  # Nothing was lost with it: no slot stays lent.


def test_a_copy_beyond_the_devices_memory_is_refused_by_the_device():
    place, gpu = made(bounces=False)
    with pytest.raises(GpuUntrusted):
        place.run(gpu.copy_in(DATA, (1 << 20) - 8, 64))


def test_where_no_gpu_is_none_is_found():
    place, gpu = made(bounces=False)

    class Silence:
        def load(self, _bar, _offset, length):
            return (1 << 8 * length) - 1

    place.device = Silence()
    with pytest.raises(DeviceSilent):
        place.run(gpu.start())


def test_a_faulting_book_ends_the_work():
    place, gpu = made(bounces=False)
    place.spoil[PRIVATE + 2 * 4096] = Fault(FaultKind.NESTED_PAGE_FAULT, 0)
    with pytest.raises(BounceFault):
        place.run(gpu.copy_in(DATA, 0, 64))
    assert len(place.memory) == MEMORY_BYTES


def test_a_device_that_is_stopped_rings_no_more():
    place, gpu = made(bounces=True)
    place.run(gpu.stop())
    before = place.device.ignored
    place.device.store(0, 0x14, 1, 4)
    assert place.device.ignored == before + 1
    assert place.run(gpu.start()) == 1 << 20
