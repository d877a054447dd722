"""The interrupt command register of an x2APIC (APM volume 2, 16.5 and 16.11): how vCPUs start each other."""

from __future__ import annotations

X2APIC_ICR = 0x830
"""Its MSR: vector in bits 7:0, delivery mode in 10:8, shorthand in 19:18, APIC ID in 63:32."""
FIXED, INIT, STARTUP = 0, 5, 6
"""Delivery modes."""
SELF, ALL, OTHERS = 1, 2, 3
"""Shorthands."""
LOWEST_VECTOR = 0x10
"""Vectors below are no fixed interrupt's."""
