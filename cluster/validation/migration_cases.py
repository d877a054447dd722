"""Predictions of live migrations by the rounds that sevfleet's own pre-copy takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.precopy import Precopy, PrecopySettings, Round, RoundCap, Verdict
from cluster.validation.case import Case
from node.dirty_rates import Pool

_MIB, _GIB = 1 << 20, 1 << 30
_MS, _S = 1e6, 1e9
_LIMIT_NS = 300_000_000
_KIB_PER_GIB = 1 << 20
_LOCAL_BYTES_PER_S = 1.895 * _GIB
"""TCP within one machine: the middle of the rates in the log of cloud-hypervisor pull request 7799."""


@dataclass(frozen=True, slots=True)
class _Moved:
    rounds: Sequence[Round]
    left_bytes: int
    began_ns: int
    """When the last copy begins."""
    verdict: Verdict


def _moved(
    memory: int, pool: Pool, bytes_per_s: float, costs: Mapping[str, float], most_rounds: int, fixed_ns: float = 0.0
) -> _Moved:
    settings = PrecopySettings(
        _LIMIT_NS, most_rounds, RoundCap.STOP, costs["migration.round_ns_per_gib"], fixed_ns
    )  # fmt: skip
    rounds = Precopy(memory, (pool,), settings, 0)
    now_ns, verdict = 0, Verdict.NEXT
    while verdict is Verdict.NEXT:
        rounds.begin(now_ns)
        now_ns += round(rounds.size_bytes / bytes_per_s * _S)
        verdict = rounds.round_done(now_ns)
        now_ns += rounds.between_rounds_ns
    last = rounds.rounds[-1]
    left = Precopy(memory, (pool,), settings, last.began_ns).dirty_bytes(last.ended_ns)
    return _Moved(rounds.rounds, left, now_ns, verdict)


def never_ready(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-2: every round finds all of the rewritten memory dirty again."""
    rate = _LOCAL_BYTES_PER_S
    moved = _moved(6 * _GIB, Pool(5418 * _MIB, 1e12), rate, costs, 8)
    first, second, third = moved.rounds[:3]
    return {
        "first pass": (first.ended_ns - first.began_ns) / _S,
        "each further round": (third.ended_ns - second.ended_ns) / _S,
        "bytes of a round": second.size_bytes / _MIB,
        "downtime if it stopped": moved.left_bytes / rate * 1e3,
    }


def downtime_parts(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-3: a small guest writes all over as fast as lets its move take what it took."""
    return downtime_of(_GIB, case.fitted()["total"], costs)


def downtime_of(memory: int, total_s: float, costs: Mapping[str, float]) -> Mapping[str, float]:
    """What a move is made of, of a guest of so many bytes that writes all over, enough for the move to take so long.

    Neither the guest's size nor what it writes was published. A total time is longer the more is written, and jumps
    where one more round comes: the most that is written for a total not above the published one.
    """
    fixed_ns = costs["migration.stop_ns"] + costs["migration.resume_ns"]
    slow, fast = 0.0, 4 * _LOCAL_BYTES_PER_S
    for _ in range(32):
        rate = (slow + fast) / 2
        if _whole(memory, rate, costs, fixed_ns)[0] > total_s:
            fast = rate
        else:
            slow = rate
    total, last_s = _whole(memory, slow, costs, fixed_ns)
    return {"total": total, "final copy": last_s * 1e3, "downtime": last_s * 1e3 + fixed_ns / _MS}


def _whole(memory: int, written_per_s: float, costs: Mapping[str, float], fixed_ns: float) -> tuple[float, float]:
    """Seconds that a move takes, and its last copy alone."""
    moved = _moved(memory, Pool(memory, written_per_s), _LOCAL_BYTES_PER_S, costs, 100, fixed_ns)
    last_s = moved.left_bytes / _LOCAL_BYTES_PER_S
    return (moved.began_ns + fixed_ns) / _S + last_s, last_s


def idle_node(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-6: a saturating pool of the fitted size."""
    rate = 105.3 * _MIB
    moved = _moved(int(7.1 * _GIB), Pool(2 * _GIB, 650e6 / 8), rate, costs, 100)
    sent = sum(one.size_bytes for one in moved.rounds) + moved.left_bytes
    return {"total": (moved.began_ns / _S) + moved.left_bytes / rate, "sent": sent / _MIB}


def fixed_parts(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-11: what grows with memory and with vCPUs."""
    log_ns, vcpu_ns = costs["migration.start_log_ns_per_gib"], costs["migration.pause_vcpu_ns"]
    return {
        "dirty log on, 8 GiB": 8 * log_ns / _MS,
        "dirty log on, 64 GiB": 64 * log_ns / _MS,
        "254 vCPUs paused": 254 * vcpu_ns / _MS,
    }


def _send_bytes_per_s(costs: Mapping[str, float]) -> float:
    return _GIB / _KIB_PER_GIB * _S / costs["psp.send_update_ns_per_kib"]


def sev_pass(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-15: one pass at the firmware's rate, and what the rounds end at for a guest that writes faster."""
    rate = _send_bytes_per_s(costs)
    memory = 4 * _GIB
    moved = _moved(memory, Pool(memory, 1.1 * rate), rate, costs, 100)
    first, last = moved.rounds[0], moved.rounds[-1]
    return {
        "first pass": (first.ended_ns - first.began_ns) / _S / 60,
        "left for ever at 1.1 times its rate": last.size_bytes / memory,
    }


def sev_rate(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MG-16: the rate itself."""
    return {"rate": _send_bytes_per_s(costs) / 1e6}
