"""Sweeps: one scenario as many whole simulations, over seeds and settings, side by side.

``parameter_sweep`` is the call; ``plan`` says what is run, ``workers`` where,
``folder`` keeps it, ``tables`` and ``report`` show it. A run is an ordinary one, in
layout inline; nothing outside of this folder knows of sweeps but the command.
"""
