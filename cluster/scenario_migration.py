"""The parts of a scenario that are about the network and live migration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from cluster.scenario_fields import LARGEST_COUNT, Count, Name, ScenarioPart
from cluster.units import Duration, Rate, Size


class FabricSettings(ScenarioPart):
    """The network between hosts. Shares of it are a fluid, re-shared on a grid of virtual time."""

    topology: Literal["star", "leaf-spine"] = "star"
    """``star``: one switch that does not block; ``leaf-spine``: racks behind uplinks that may be short."""
    link: Rate = 1_250_000_000
    """Each host's link, each way."""
    rack_hosts: Annotated[int, Strict(), Field(ge=1, le=LARGEST_COUNT)] = 16
    """Hosts of a rack, in the order of the scenario; for leaf-spine."""
    oversubscription: Annotated[float, Strict(), Field(ge=1, le=1000, allow_inf_nan=False)] = 3.0
    """A rack's hosts' links over its uplinks; for leaf-spine."""
    latency: Duration | None = None
    """One way between two hosts, for frames of guests. Default: the control plane's; a shorter one makes a run slower,
    since hosts may not run ahead of each other by more."""
    reshare_grid: Duration = 1_000_000
    """Flows that meet get new shares at multiples of this."""


class MigrationSettings(ScenarioPart):
    """How VMs are moved while they run."""

    downtime_limit: Duration = 300_000_000
    """A VM is stopped when what is left to send fits into this, beside the parts of a downtime that are always there
    (QEMU and Cloud Hypervisor: 300 ms)."""
    max_rounds: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 30
    """Rounds of pre-copy, the first included."""
    at_round_cap: Literal["abort", "stop-and-copy", "post-copy"] = "abort"
    """What happens to a VM that still writes too fast then."""
    mode: Literal["pre-copy", "post-copy"] = "pre-copy"
    """``post-copy``: a machine runs at its target at once, and gets its memory there; PLAIN and SME machines only,
    others are copied before."""
    prefault: Annotated[bool, Strict()] = False
    """The target touches all of a machine's memory before it comes (Cloud Hypervisor)."""
    connections: Annotated[int, Strict(), Field(ge=1, le=128)] = 1
    """Connections of each migration; one moves what the cost table says (Cloud Hypervisor: 1 to 128)."""
    bandwidth: Rate | None = None
    """What each migration may take of the network. Default, and with 0: all that it gets."""
    compression: Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """Bytes on the wire for each byte of memory, with zstd; not of SEV guests, whose pages are noise. Default: none."""
    zero_pages: Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Have sources look for pages of zeros before they send all memory, and take so large a share of it for such where
    only account is kept of it; PLAIN and SME machines only, others look like noise. Default: they do not look."""
    timeout_per_gib: Duration = 0
    """How long copying may take for each GiB, 0 for ever (KubeVirt: 150 s)."""
    at_timeout: Literal["abort", "stop-and-copy", "post-copy"] = "abort"
    """What happens then. What was not sent is sent while the VM stands still, or comes when it runs at its target."""
    progress_timeout: Duration = 0
    """Give up when no round for so long has ended with less left than the best one, 0 for never (KubeVirt: 150 s)."""
    downtime_steps: Annotated[int, Strict(), Field(ge=1, le=100)] = 1
    """In how many even steps the downtime limit is reached, the first of which is at once: of 400 ms in 10 steps 40 ms
    come first, then 76 and 112 (Nova: 10, to 500 ms)."""
    downtime_step_per_gib: Duration = 0
    """Time from each step to the next for each GiB, of which at least 2 count (Nova: 75 s)."""
    auto_converge: Annotated[bool, Strict()] = False
    """Slow a guest down that writes too fast: vCPUs stand still for a share of their time."""
    throttle_initial: Annotated[float, Strict(), Field(gt=0, le=0.99)] = 0.2
    """Their share at first (QEMU: 20 %)."""
    throttle_increment: Annotated[float, Strict(), Field(gt=0, le=0.99)] = 0.1
    """And with each further step (QEMU: 10 %)."""
    throttle_max: Annotated[float, Strict(), Field(gt=0, le=0.99)] = 0.99
    """And at most (QEMU: 99 %)."""
    dirty_limit: Rate | None = None
    """What each vCPU may write at most while its machine is copied. Default, and with 0: no limit."""
    recover_after: Duration = 1_000_000_000
    """After a link broke and is back: how long until somebody has a machine's post-copy go on."""
    let_go_within: Duration = 60_000_000_000
    """How long a machine may take to let its trusted devices go before it moves."""
    handler_believes_log: Annotated[bool, Strict()] = True
    """Whether a migration handler takes its hypervisor's word for which pages its guest has written. One that does not
    seals all of them again when the guest stands still; what real ones will do is not known."""
    answer_within: Duration = 100_000_000
    """In a scenario with faults: when nothing was heard for so long the control plane says it again."""
    answer_tries: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 10
    """How often it does, before it gives a move up that can still be given up."""
    record: Size | None = None
    """The disk of the control plane's record of hand-overs; no move begins that it might have no room for. Default:
    without end."""
    per_host: Annotated[int, Strict(), Field(ge=0, le=LARGEST_COUNT)] = 2
    """Migrations from and to a host at once, 0 for no limit (KubeVirt: 2 from a node)."""
    per_fleet: Annotated[int, Strict(), Field(ge=0, le=LARGEST_COUNT)] = 5
    """Migrations at once in all, 0 for no limit (KubeVirt: 5)."""


class MigrationPlan(ScenarioPart):
    """VMs that are moved at a given time, once or again and again."""

    vm: Name
    """A VM, or a group for all its VMs."""
    at: Duration
    """When it is asked for."""
    at_spread: Duration = 0
    """Each VM's first move is later by a random part of this, evenly spread."""
    to: Name | None = None
    """The host it goes to. Default: placed."""
    placement: Literal["first-fit", "random"] = "first-fit"
    """Where the search for a host begins, if none is named: at the first of the scenario, or at a random one."""
    cancel_after: Duration | None = None
    """Call it off when this has passed and it is not over."""
    times: Count = 1
    """How often each VM moves."""
    pause: Duration = 1_000_000_000
    """Least time from the end of a move to the next."""
    pause_spread: Duration = 0
    """Each pause is longer by a random part of this, evenly spread."""


class DrainPlan(ScenarioPart):
    """A host that is to be emptied: every VM on it, or on its way there, moves elsewhere, as far as it can.

    From then on it takes nobody who does not name it.
    """

    host: Name
    at: Duration
    """When it is asked for."""
