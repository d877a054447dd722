"""Attackers: programs that yield operations, like any other, and receive nothing but answers.

An attack is a generator. It is handed a ``Target``: what the hypervisor's own
books say of the victim. It yields batches; what kind of operation a batch holds
says whose hands it takes (a hypervisor's, those of a tenant that the
attacker runs beside the victim, or of somebody at the memory modules or at a card's slot), and a laboratory gives it
only the hands that it may have. Where the victim has a card, the hypervisor's driver of cards is the attacker's, books
and all: what that does are the hypervisor's operations. An empty batch lets the victim run until it next rests.
"""
