"""Who runs there: tenants' programs, and the traces that say when tenants come and go.

What this floor owns
    Programs of tenants: a key-value store, one with clients over the network and
    such a client, a bandwidth program (``stream``),
    a latency program (``random_access``), a compile-like job, and a player of
    traces; ``library`` knows them by name. Traces of data centres: a loader
    (``trace``) and a seeded generator in the same schema (``trace_generator``).
    Attackers (``attacks``), and the victim they are tried on.

What it may not import
    ``cluster``, and of ``node`` nothing but ``node.operations``,
    ``node.program``, ``node.counter_random`` and the guest kernel's parts of
    blocks (``node.swiotlb``, ``node.guest_disk``, ``node.guest_nic`` with what
    they raise, and ``node.mac_address``): a tenant sees operations and
    answers, never a board, a hypervisor, a clock or another tenant. Attackers
    also take a hypervisor's means: its command buffers and its driver of the
    IOMMU. No SimPy, no Ray, no sockets, no wall clock, no global randomness.

Rules of a program
    It is frozen and holds only its specification: parameters, placement and
    what is computed from these. Between two blocks it knows what is in its
    registers and in guest memory, nothing else.
    It checks every answer. What memory must hold is computed from the
    program's key (a function of seed, VM and vCPU) and from its counters, so
    a flipped, swapped or stale byte is noticed when it is read next.
    A wrong answer ends in ``Shutdown(1)``, a fault or a device error in
    ``Shutdown(2)``, silence of others in ``Shutdown(3)``, a device that
    nobody may believe in ``Shutdown(4)`` (``block_outcome``).
    Contents are made in bulk, by SHAKE-128 or numpy, never byte by byte.

Demands
    Instructions per cycle, misses and parallelism of the programs are the
    laboratory's choice, marked so where they stand: no published measurement
    of these programs exists.
"""
