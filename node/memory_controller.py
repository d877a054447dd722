"""The memory controller: a key slot for each ASID in front of DRAM, and one for the host.

Software never sees a key. An access with ASID 0 goes past the cipher, unless the
host encrypts everything (TSME); one with ``HOST_KEY`` is the host's with C=1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from node.bytes_in_place import bytes_in_place
from node.cipher_scratch import STRIDE_BYTES, wipe_scratch
from node.dram import WORD_BYTES, Dram, Fill, MachineCheck, Words
from node.memory_cipher import BLOCK_BYTES, FEW_BYTES, Ciphers, MemoryCipher
from psp.system_bus import PAGE_BYTES

HOST_KEY = -1
"""In place of an ASID: an access of the host with C=1, through its own key (APM volume 2, 7.10)."""

_IN_BLOCK = BLOCK_BYTES - 1
_IN_PAGE = PAGE_BYTES - 1
_ZEROS: Words = np.zeros(PAGE_BYTES // WORD_BYTES, np.uint64)


class NoKey(Exception):
    """An access through an ASID whose key slot is empty.

    What silicon returns then is not documented (garbage of an old or zero key);
    here the access is refused, so that no result rests on it.
    """

    def __init__(self, asid: int) -> None:
        super().__init__(f"ASID {asid} has no key")
        self.asid = asid


class NoHostKey(Exception):
    """An access with C=1 on a host whose software cannot ask for the host's key.

    The C-bit is an address bit then (SYSCFG.MemEncryptionModeEn = 0), and no
    host has memory that far up: nothing answers.
    """

    def __init__(self, spa: int) -> None:
        super().__init__(f"C-bit set at {spa:#x}, but memory encryption is off")
        self.spa = spa


class MemoryController:
    """Reads and writes DRAM through the key of an ASID: 0 for a host's access with C=0, ``HOST_KEY`` with C=1."""

    def __init__(self, dram: Dram, ciphers: Ciphers) -> None:
        self.bytes_encrypted = 0
        self.bytes_decrypted = 0
        self._dram = dram
        self.key_bytes = ciphers.key_bytes
        self._make = ciphers
        self._ciphers: dict[int, MemoryCipher] = {}
        self._marks: dict[int, bytes] = {}
        self.on_change: Callable[[], None] | None = None
        """Told when what was read before is not to be remembered: keys came or went, or caches were flushed."""
        self._reserved = range(0)
        self._reserved_from = 1 << 64
        self.answers_to = dram.size_bytes
        """Up to here memory answers everywhere, whatever is beyond."""

    def reserve(self, spa: int, length: int) -> None:
        """Let no access reach a range any more, by whatever key: hardware has it to itself. Length 0 ends it.

        What an access gets there is not published; here nothing answers.
        """
        self._reserved = range(spa, spa + length)
        self._reserved_from = spa if length else 1 << 64
        self.answers_to = min(self._reserved_from, self._dram.size_bytes)
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _expect_unreserved(self, spa: int, length: int) -> None:
        if spa < self._reserved.stop:
            raise MachineCheck(spa, length)

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a key into the slot of an ASID; ASID 0, the host, has none here."""
        if asid < 1:
            raise ValueError(f"asid: expected one of a guest, got {asid}")
        self._ciphers[asid] = self._make.cipher(key)
        self._marks[asid] = hashlib.sha256(key).digest()
        self._changed()

    def install_host_key(self, key: bytes, *, transparent: bool) -> None:
        """Load the host's own key, as firmware does before the cores start.

        ``transparent`` is TSME: every access without a guest's key goes through it, and there is no C-bit.
        """
        # With TSME alone MemEncryptionModeEn is clear: no address asks for the key, and none can do without it.
        self._ciphers[0 if transparent else HOST_KEY] = self._make.cipher(key)

    @property
    def host_cipher(self) -> MemoryCipher | None:
        """What chips of the board that keep tables in DRAM put between the two; None on a host without a key."""
        return self._ciphers.get(HOST_KEY) or self._ciphers.get(0)

    def remove_key(self, asid: int) -> None:
        """Empty the slot of a guest's ASID."""
        if asid >= 1:
            self._ciphers.pop(asid, None)
            self._marks.pop(asid, None)
            self._changed()

    def mark_of(self, asid: int) -> bytes | None:
        """What tells the key of an ASID from every other, and nothing else of it; None for an empty slot."""
        return self._marks.get(asid)

    def has_key(self, asid: int) -> bool:
        """Whether the slot of an ASID, or the host's, holds a key."""
        return asid in self._ciphers

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Load bytes; raises MachineCheck outside of memory, NoKey for an empty slot, NoHostKey.

        Memory that nobody wrote is zero in DRAM, so it reads as what zeros decrypt to.
        """
        if spa + length > self._reserved_from:
            self._expect_unreserved(spa, length)
        cipher = self._ciphers.get(asid)
        if cipher is None:
            if asid != 0:
                self._expect_plain(asid, spa)
            return self._dram.read(spa, length)
        if length <= 0:
            return self._dram.read(spa, length)
        if asid < 1:
            # A host's memory is mostly what it cleared or laid down itself: pages that need not become real.
            laid = self._dram.laid(spa, length, cipher.encrypt)
            if laid is not None:
                return laid
        before = spa & _IN_BLOCK
        start = spa - before
        whole = before + length + _IN_BLOCK & ~_IN_BLOCK
        if (start & _IN_PAGE) + whole <= PAGE_BYTES:
            if whole <= FEW_BYTES:
                few = cipher.decrypt_few(self._dram.read(start, whole), start)
                self.bytes_decrypted += whole
                return few if whole == length else few[before : before + length]
            words = self._dram.words(start, whole)
            plain = cipher.decrypt_in_page(_ZEROS[: whole // WORD_BYTES] if words is None else words, start)
            self.bytes_decrypted += whole
            return plain[before : before + length].tobytes()
        return self._read_bulk(cipher, start, whole)[before : before + length]

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """The object that whole pages were laid from past every key, and the offset in it; None where nothing is so."""
        if 0 in self._ciphers or spa + length > self._reserved_from:
            return None
        return self._dram.source(spa, length)

    def write(self, spa: int, data: bytes | bytearray | memoryview, asid: int) -> None:
        """Store bytes; blocks in part are read, changed and written back, as hardware does. Raises as ``read``."""
        if spa + len(data) > self._reserved_from:
            self._expect_unreserved(spa, len(data))
        cipher = self._ciphers.get(asid)
        if cipher is None:
            self._expect_plain(asid, spa)
            self._dram.write(spa, data)
            return
        length = len(data)
        if (spa | length) & _IN_BLOCK:
            before, after = spa & _IN_BLOCK, -(spa + length) & _IN_BLOCK
            self.write(
                spa - before,
                b"".join((self.read(spa - before, before, asid), data, self.read(spa + length, after, asid))),
                asid,
            )
            return
        if 0 < length <= FEW_BYTES and (spa & _IN_PAGE) + length <= PAGE_BYTES:
            self._dram.expect(spa, length)
            self._dram.write(spa, cipher.encrypt_few(bytes(data), spa))
            self.bytes_encrypted += length
            return
        source: Words = np.frombuffer(data, np.uint64)
        if 0 < length <= PAGE_BYTES - (spa & _IN_PAGE):
            cipher.encrypt_in_page(source, spa, self._dram.writable_words(spa, length))
        else:
            for at, size in self._dram.pieces(spa, length):
                first = (at - spa) // WORD_BYTES
                part = source[first : first + size // WORD_BYTES]
                cipher.encrypt(part, at, self._dram.writable_words(at, size))
        self.bytes_encrypted += length

    def lay(self, spa: int, data: bytes, asid: int) -> None:
        """Store bytes; whole pages become real when somebody looks at them. Raises as ``read``.

        What is stored through a key becomes real at ``flush`` at the latest, but for zeros.
        """
        if (spa | len(data)) & _IN_PAGE or not data:
            self.write(spa, data, asid)
            return
        if spa + len(data) > self._reserved_from:
            self._expect_unreserved(spa, len(data))
        if asid == 0 and 0 not in self._ciphers:
            self._dram.lay(spa, data)
            return
        self._dram.lay(spa, data, self._cipher(asid, spa).encrypt, until_flush=data.count(0) < len(data))
        self.bytes_encrypted += len(data)

    def flush(self) -> None:
        """What WBINVD leaves of private pages: ciphertext in DRAM, and no plaintext on its way.

        A firmware image that was laid and then encrypted in place stays a run: its plaintext is the host's.
        """
        self._dram.settle()
        wipe_scratch()
        self._changed()

    def expect_store(self, spa: int, length: int, asid: int) -> None:
        """Raises what ``write`` of so many bytes would: for whoever stores in several parts, all or none."""
        self.expect(spa, length)
        self._fill(asid, spa)

    def expect(self, spa: int, length: int) -> None:
        """Raises MachineCheck unless memory answers in the whole range."""
        end = spa + length
        if end > self._reserved_from:
            self._expect_unreserved(spa, length)
        if end > self._dram.size_bytes or spa < 0 or length < 0:
            self._dram.expect(spa, length)

    def clear(self, spa: int, length: int, asid: int) -> None:
        """Zero memory; whole pages cost nothing and count as never written. Raises as ``read``."""
        if asid == 0 and 0 not in self._ciphers:
            self.expect(spa, length)
            self._dram.release(spa, length)
            return
        fill = self._cipher(asid, spa).encrypt
        self.expect(spa, length)
        # Zeros are only made for pages in part, so that a long range takes no memory of its own.
        end = spa + length
        first, last = -(-spa // PAGE_BYTES) * PAGE_BYTES, end & ~_IN_PAGE
        if first > last:
            first = last = end
        if spa < first:
            self.write(spa, bytes(first - spa), asid)
        if first < last:
            self._dram.clear(first, last - first, fill)
        if last < end:
            self.write(last, bytes(end - last), asid)

    def written_runs(self, spa: int, length: int, asid: int) -> Iterable[tuple[int, int]]:
        """Runs of whole pages in a range that hold what somebody wrote, as (SPA, length). Raises as ``read``."""
        self._fill(asid, spa)
        return self._dram.resident_runs(spa, length)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """Put what the host reads with C=0 through the key of an ASID. Raises as ``read``."""
        fill = self._cipher(asid, spa).encrypt
        self.expect(spa, length)
        rest = [(spa, length)]
        if not (spa | length) & _IN_PAGE:
            rest = self._dram.refill(spa, length, self._fill(0, spa), fill)
            self.bytes_encrypted += length - sum(size for _, size in rest)
        for at, size in rest:
            self.write(at, self.read(at, size, 0), asid)

    def _read_bulk(self, cipher: MemoryCipher, spa: int, length: int) -> bytes:
        """Decrypt whole blocks."""
        # All found first: whoever is told of the access may read memory, too.
        parts = [(at, size // WORD_BYTES, self._dram.words(at, size)) for at, size in self._dram.pieces(spa, length)]

        def fill(answer: Words) -> None:
            first = 0
            for at, count, found in parts:
                words = np.zeros(count, np.uint64) if found is None else found
                cipher.decrypt(words, at, answer[first : first + count])
                first += count

        self.bytes_decrypted += length
        if length > STRIDE_BYTES:
            return bytes_in_place(length, fill)
        answer: Words = np.empty(length // WORD_BYTES, np.uint64)
        fill(answer)
        return answer.tobytes()

    def _cipher(self, asid: int, spa: int) -> MemoryCipher:
        cipher = self._ciphers.get(asid)
        if cipher is None:
            raise NoHostKey(spa) if asid == HOST_KEY else NoKey(asid)
        return cipher

    def _fill(self, asid: int, spa: int) -> Fill | None:
        """What an access puts between its bytes and DRAM."""
        if asid == 0 and 0 not in self._ciphers:
            return None
        return self._cipher(asid, spa).encrypt

    def _expect_plain(self, asid: int, spa: int) -> None:
        """An access found no cipher: that of the host with C=0 needs none."""
        if asid != 0:
            self._cipher(asid, spa)
