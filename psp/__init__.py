"""The AMD secure processor's firmware.

It sees the machine only through ``psp.system_bus``, imports ``tio`` at most and knows no clock.
"""
