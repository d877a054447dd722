"""Devices that speak SPDM on a socket, and a requester for them: ``sevfleet device``."""
