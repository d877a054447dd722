"""Hypervisors as if in processes of their own: everything that they are told and say crosses as bytes, and is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.firmware_image import FirmwareImage
from node.hypervisor_server import HypervisorServer
from node.remote_hypervisor import RemoteHypervisor


def overheard(image: FirmwareImage) -> tuple[list[bytes], Callable[..., RemoteHypervisor]]:
    """What has crossed, of all of them, and how a host gets one."""
    crossed: list[bytes] = []

    def remote(*order: Any) -> RemoteHypervisor:
        server = HypervisorServer(lambda _: image)

        def exchange(request: bytes) -> bytes:
            crossed.append(request)
            crossed.append(server.exchange(request))
            return crossed[-1]

        return RemoteHypervisor(exchange, *order)

    return crossed, remote
