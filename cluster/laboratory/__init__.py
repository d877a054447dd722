"""The attack laboratory: one host, a victim, a tenant of the attacker's, and attacks by their row in the matrix.

``scene`` sets a host up and lets an attack act in it, ``rows`` says which
programs carry a row of the matrix out. What an attack came to is judged by
``cluster.oracle``, which sees nothing of the scene but a transcript.
"""
