"""What an agent remembers of a guest's moves."""

import pytest

from node.agent_messages import KEY_BYTES, AgentRefusal, Hello
from node.migration_agent import MigrationAgent
from node.packing import packed

PEER = Hello(bytes(range(KEY_BYTES)), b"").pack()


def agent():
    """One that has greeted already and believes everybody."""
    one = MigrationAgent(0x1000, {}, 0, verifies_peer=False)
    one._own = object()
    return one


def served(one, *order):
    step = one.serve(packed(order))
    with pytest.raises(StopIteration) as done:
        next(step)
    return done.value.value


def remembered(one):
    return [one._peers, one._kept, one._peer_ids, one._peer_tcbs, one._senders]


@pytest.mark.parametrize("comes", [False, True])
def test_of_a_guest_that_it_is_to_forget_it_knows_nothing(comes):
    one = agent()
    served(one, "meet", "vm", PEER, comes)
    served(one, "forget", "vm")
    assert remembered(one) == remembered(agent())


def test_it_vouches_for_nobody_with_the_report_of_a_peer_that_it_met_before():
    one = agent()
    one._peers["vm"], one._peer_ids["vm"] = b"another", b"another's report id"
    served(one, "meet", "vm", PEER, False)
    with pytest.raises(AgentRefusal, match="no peer was met"):
        next(one.serve(packed(("vouch", "vm", 0, bytes(KEY_BYTES)))))
