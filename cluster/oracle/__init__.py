"""The oracle: what an attack came to, judged from outside of the simulation.

``ledger`` knows what is true: each victim's secrets. ``transcript`` holds what
the board answered to each actor, in order, taken by a tap. ``verdict`` judges
from these two alone; it never looks into a chip, a key or a program. So what a
chip believes of itself cannot colour the verdict, and a chip that is broken on
purpose is judged by the same words as one that works.
"""
