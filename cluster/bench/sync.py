"""``sevfleet bench sync``: what it costs hosts to wait for each other, and how often they have to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.actor_layout import ActorLayout, packed
from cluster.coordinator import Coordinator
from cluster.entity import NEVER, Advance, Message
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.scenario import Scenario
from node.firmware_image import laboratory_image

LOOKAHEAD_NS = 1_000_000
WINDOWS = 2_000
_WARM_UP = 200
HOSTS = 100
VMS_PER_HOST = 20
MOST_MS = 2.5
MOST_ROUND_TRIPS = 500.0
MOST_GROWTH = 1.1


class Chatterbox:
    """A toy host that tells the control plane something every lookahead, and answers nothing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_ns = 0
        self._sequence = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def events(self) -> int:
        """Words so far."""
        return self._sequence

    def deliver(self, message: Message) -> None:
        """Mail is taken and thrown away."""

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        """Likewise."""
        return self._next_ns, 0, ()

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        """Speak once a lookahead."""
        outputs: list[Message] = []
        while self._next_ns < horizon_ns and len(outputs) < event_budget:
            self._sequence += 1
            outputs.append(Message(self._next_ns, self._name, self._sequence, "control", "chat", b"-"))
            self._next_ns += LOOKAHEAD_NS
        return Advance(min(horizon_ns, self._next_ns), self._next_ns, len(outputs), tuple(outputs))

    def next_event_ns(self) -> int:
        """The next word."""
        return self._next_ns

    def earliest_output_ns(self) -> int:
        """The next word."""
        return self._next_ns

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """Nothing is kept."""
        return {}

    def gauges(self) -> dict[str, float]:
        """Nothing is shown."""
        return {}


class Echo:
    """A control plane that answers every word."""

    def __init__(self) -> None:
        self._sequence = 0

    def next_event_ns(self) -> int:
        """It has no timeline."""
        return NEVER

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """A letter back for each."""
        answers = []
        for message in messages:
            self._sequence += 1
            answers.append(
                Message(now_ns + LOOKAHEAD_NS, "control", self._sequence, message.sender, "chat", message.payload)
            )
        return answers, NEVER


def build_chatterbox(spec: bytes) -> Chatterbox:
    """Entity factory of the toy fleet."""
    return Chatterbox(spec.decode())


def run() -> Iterator[Figure]:
    """Milliseconds a round trip of two host actors; round trips of a fleet; their growth with VMs per host."""
    yield Figure(
        "round trip, coordinator and 2 host actors", round_trip_ms(), "ms", MOST_MS, "the most it should take"
    )
    trips = round_trips(VMS_PER_HOST)
    name = f"round trips, {HOSTS} hosts, {HOSTS * VMS_PER_HOST:,} VMs, 20 launches, 10 min"
    yield Figure(name, float(trips), "round trips", MOST_ROUND_TRIPS, "the most it should need")
    more = round_trips(10 * VMS_PER_HOST)
    yield Figure(f"{name}, ten times the VMs", float(more), "round trips", float(trips), "with the fewer VMs")
    yield Figure("growth of round trips with ten times the VMs", more / trips, "", MOST_GROWTH, "the most it should be")


def round_trip_ms() -> float:
    """Wall time of a window in which both hosts are called, both speak and both are answered."""
    layout = ActorLayout(packed(2))
    try:
        specs = [(name, name.encode()) for name in ("toy-1", "toy-2")]
        took = 0.0
        for windows in (_WARM_UP, WINDOWS):
            layout.start(build_chatterbox, specs)
            began = time.perf_counter()
            result = Coordinator(layout, Echo(), LOOKAHEAD_NS, windows * LOOKAHEAD_NS).run()
            took = (time.perf_counter() - began) / result.round_trips
    finally:
        layout.close()
    return took * 1e3


def round_trips(vms_per_host: int) -> int:
    """Round trips of a fleet whose VMs compute while 20 more are launched."""
    with tempfile.TemporaryDirectory() as folder:
        # Sevfleet's own small image: 20,000 copies of OVMF's 2 MiB would fill the machine's memory.
        firmware = Path(folder) / "laboratory.fd"
        firmware.write_bytes(laboratory_image().data)
        scenario = fleet(vms_per_host, firmware)
        fleet_, layout = build_fleet(scenario), InlineLayout()
        layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet_.orders])
    try:
        # In windows, as between processes, where they are what costs; how many there are does not depend on layouts.
        outcome = Coordinator(layout, fleet_.control, scenario.lookahead, scenario.duration, windows=True).run()
        return outcome.round_trips
    finally:
        layout.close()


def fleet(vms_per_host: int, firmware: Path) -> Scenario:
    """100 hosts full of computing VMs, and 20 launches of two generations spread over ten minutes."""
    small = {"memory": "64 MiB", "firmware": str(firmware), "workload": "random-access", "parameters": {
        "table_bytes": 65536, "batch": 1, "loads": 0, "instructions_per_batch": 360_000_000_000,
    }}  # fmt: skip
    launches = {"count": 10, "arrival_spacing": "60 s", **small}
    return Scenario.parse({
        "schema": 1,
        "name": "bench-sync",
        "duration": "10 min",
        "vcpu_overcommit": 4.0,
        "hosts": [{"name": "host", "product": "Milan", "count": HOSTS, "memory": "64 GiB"}],
        "vms": [
            *(
                # Pinned, because first fit would fill one host after another.
                {"name": f"vm-{host:03d}", "host": f"host-{host:03d}", "count": vms_per_host,
                 "generation": "PLAIN", "start": "running", **small}
                for host in range(1, HOSTS + 1)
            ),
            {"name": "snp", "generation": "SEV_SNP", "arrival": "1 s", **launches},
            {"name": "sev", "generation": "SEV", "arrival": "31 s", **launches},
        ],
    })  # fmt: skip
