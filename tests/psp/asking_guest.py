"""A guest's side of guest messages on the toy machine, byte by byte from the sheet."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from toy_machine import FIRMWARE, GCTX, PAGE, Machine, change_context, context, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.installed_firmware import FirmwareLevel

REQUEST, RESPONSE = 0x50_0000, 0x51_0000
TCB = 0xD116_0000_0000_0704
"""In the order of Milan: microcode, SNP, reserved, TEE, bootloader."""


def sealed(key: bytes, sequence: int, kind: int, payload: bytes, vmpck: int = 0, version: int = 1, **odd: int) -> bytes:
    """A message: tag, number, then what is authenticated."""
    bound = struct.pack(
        "<BBHBBHIB35s",
        odd.get("algorithm", 1), odd.get("header_version", 1), odd.get("header_bytes", 0x60), kind, version,
        odd.get("payload_bytes", len(payload)), odd.get("reserved", 0), odd.get("vmpck", vmpck), bytes(35),
    )  # fmt: skip
    seal = Cipher(algorithms.AES256(key), modes.GCM(struct.pack("<QI", sequence, 0))).encryptor()
    seal.authenticate_additional_data(bound)
    hidden = seal.update(payload) + seal.finalize()
    return seal.tag + bytes(16) + struct.pack("<QQ", sequence, 0) + bound + hidden


def opened(key: bytes, message: bytes) -> tuple[int, int, int, bytes]:
    """Number, type, version and payload of a message; InvalidTag if it is not the key's."""
    (sequence,) = struct.unpack_from("<Q", message, 0x20)
    kind, version, length = struct.unpack_from("<BBH", message, 0x34)
    nonce = struct.pack("<QI", sequence, 0)
    opening = Cipher(algorithms.AES256(key), modes.GCM(nonce, message[:16])).decryptor()
    opening.authenticate_additional_data(message[0x30:0x60])
    payload = opening.update(message[0x60 : 0x60 + length]) + opening.finalize()
    return sequence, kind, version, payload


def running(**changes: object) -> Machine:
    """A machine with a running guest, and a page of firmware's for answers."""
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    machine.psp.firmware.install(FirmwareLevel((1, 55, 40), TCB))
    machine.psp.firmware.commit()
    change_context(machine, **changes)
    machine.bus.rmp_set(RESPONSE, FIRMWARE)
    return machine


def submit(
    machine: Machine, message: bytes, request: int = REQUEST, response: int = RESPONSE, gctx: int = GCTX
) -> int:
    """Have the firmware look at a message."""
    machine.bus.write(request // PAGE * PAGE, message.ljust(PAGE, b"\0"))
    buffer = buffers.SnpGuestRequest(gctx, request, response).pack()
    return machine.call(SnpCommand.GUEST_REQUEST, buffer)


def ask(machine: Machine, kind: int, payload: bytes, vmpl: int = 0, version: int = 1) -> bytes:
    """The payload of the answer to a good message."""
    guest = context(machine)
    key, count = guest.vmpck(vmpl), guest.message_counts[vmpl]
    assert submit(machine, sealed(key, count + 1, kind, payload, vmpl, version)) == 0
    sequence, answered, its_version, answer = opened(key, machine.bus.read(RESPONSE, PAGE))
    assert (sequence, answered, its_version) == (count + 2, kind + 1, version)
    assert context(machine).message_counts[vmpl] == count + 2
    return answer
