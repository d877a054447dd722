"""The roots of laboratory 0, as relying parties trust them: SHA-256 of each ARK's SubjectPublicKeyInfo."""

from __future__ import annotations

from collections.abc import Mapping

LABORATORY_ROOTS: Mapping[str, frozenset[str]] = {
    "Milan": frozenset({"9eceeb66490ae1ee3f0332b3e2ec48355e8249eada905ac42759b9a46b30f9b7"}),
    "Genoa": frozenset({"2b5458860798829b93e0a0451f9f8d24ec1484148ba25b0d6450bea87bdcda8d"}),
    "Turin": frozenset({"d51f7baac6a2f35043568fdf01c3089128ea80ca45f55c0a846192ca515274c4"}),
}
