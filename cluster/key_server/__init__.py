"""The laboratory's stand-in for AMD's key distribution service, over HTTP and inside scenarios.

``key_urls`` says what a URL asks for, ``chip_register`` which chips there are,
``key_service`` answers, ``rate_limit`` and ``failures`` get in its way, and
``http_door`` lets strangers' clients in. All but the door are pure: the time is
handed to them.
"""

from __future__ import annotations
