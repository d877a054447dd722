"""Where guest contexts are: in their Context pages, in memory, and nowhere else.

The firmware encrypts a context on its way to memory and decrypts it on its way back,
at each command. There is one key a boot and no integrity value: the RMP alone keeps
others away, so whoever gets round it can damage a context, or bring back what lay
there before, and no command notices (BadRAM, RMPocalypse).

The cipher is AES-128 in XTS, with the page's number as the sector: each block of 16
bytes stands for itself and for its address. That the address goes in is taken from how
memory is encrypted otherwise; ``tweaked`` says so, for nobody has published it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from psp.guest_context import GuestContext, SnpGuestState
from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus

_KEY_BYTES = 32
"""Two keys of AES-128."""
_MAC_BYTES = 32
_STATES = frozenset(SnpGuestState)


class ContextPages:
    """The Context pages of one boot. Of a guest it keeps nothing but where its page is."""

    def __init__(self, bus: SystemBus, random: Callable[[str, int], bytes]) -> None:
        self.tweaked = True
        """Whether ciphertext depends on the page it lies in; without, contexts may be copied between pages too."""
        self.has_mac = False
        """Hypothetical: an integrity value at the end of the page, so that damage and mixtures are INVALID_GUEST."""
        self.spas: dict[int, None] = {}
        """A set, in the order in which they were created."""
        self._bus = bus
        self._random = random
        self._key: algorithms.AES | None = None
        self._ciphers: dict[int, tuple[CipherContext, CipherContext]] = {}
        """By sector, for there and back: XTS takes every piece for a data unit, and to set one up costs the most."""
        self._mac_key = b""

    def __contains__(self, spa: int) -> bool:
        """Whether the RMP says that a page is a Context page."""
        if spa % PAGE_BYTES:
            return False
        entry = self._bus.rmp_run(spa, 1)
        if entry is None and self._bus.rmp_covers(spa):
            entry = self._bus.rmp_entry(spa)
        return entry is not None and page_state(entry) is PageState.CONTEXT

    def found(self, spa: int) -> GuestContext:
        """What a Context page holds, damaged or not. Raises PspError(INVALID_GUEST) for another page."""
        return GuestContext.parse(self.plain(spa))

    def plain(self, spa: int) -> bytes:
        """What a Context page decrypts to, damaged or not. Raises PspError(INVALID_GUEST) for another page."""
        if spa not in self:
            raise PspError(Status.INVALID_GUEST)
        page = self._cipher(spa)[1].update(self._bus.read(spa, PAGE_BYTES))
        if self.has_mac and not hmac.compare_digest(self._mac(spa, page), page[-_MAC_BYTES:]):
            raise PspError(Status.INVALID_GUEST)
        return page

    def read(self, spa: int) -> GuestContext:
        """The context in a page. Raises PspError(INVALID_GUEST) where there is none, or none any more."""
        return self.opened(spa)[1]

    def opened(self, spa: int) -> tuple[bytes, GuestContext]:
        """The same with its bytes, for who changes some of them alone."""
        page = self.plain(spa)
        context = GuestContext.parse(page)
        if context.state not in _STATES:
            # Nothing but damage leaves such a state; what firmware answers then is not published.
            raise PspError(Status.INVALID_GUEST)
        return page, context

    def write(self, spa: int, context: GuestContext) -> None:
        """Put a context into its page."""
        self.write_packed(spa, context.pack())

    def write_packed(self, spa: int, page: bytes) -> None:
        """The same for one that is packed already."""
        if self.has_mac:
            page = page[:-_MAC_BYTES] + self._mac(spa, page)
        self._bus.write(spa, self._cipher(spa)[0].update(page))

    def create(self, spa: int) -> None:
        """Put a new guest's context into a page."""
        self.spas[spa] = None
        self.write(spa, GuestContext())

    def erase(self, spa: int) -> None:
        """Leave nothing of a context."""
        self.spas.pop(spa, None)
        self._ciphers.pop(spa // PAGE_BYTES, None)
        self._bus.write(spa, bytes(PAGE_BYTES))

    def _mac(self, spa: int, page: bytes) -> bytes:
        self._mac_key = self._mac_key or self._random("context MAC", _MAC_BYTES)
        return hmac.digest(self._mac_key, spa.to_bytes(8, "little") + page[:-_MAC_BYTES], "sha256")

    def _cipher(self, spa: int) -> tuple[CipherContext, CipherContext]:
        sector = spa // PAGE_BYTES if self.tweaked else 0
        cipher = self._ciphers.get(sector)
        if cipher is None:
            if self._key is None:
                self._key = algorithms.AES(self._random("context key", _KEY_BYTES))
            made = Cipher(self._key, modes.XTS(sector.to_bytes(16, "little")))
            cipher = self._ciphers[sector] = made.encryptor(), made.decryptor()
        return cipher
