"""Which links lie between two hosts."""

import pytest

from cluster.topology import leaf_spine, star

RATE = 1.25e9


def names(topology, source, destination):
    return [topology.links[number].name for number in topology.path(source, destination)]


def test_in_a_star_a_flow_takes_its_source_s_way_up_and_its_target_s_way_down():
    topology = star({"a": RATE, "b": 2 * RATE})
    assert names(topology, "a", "b") == ["a up", "b down"]
    assert names(topology, "b", "a") == ["b up", "a down"]
    assert [link.bytes_per_s for link in topology.links] == [RATE, RATE, 2 * RATE, 2 * RATE]


def test_inside_a_host_there_is_no_network():
    assert names(star({"a": RATE}), "a", "a") == []


def test_in_a_rack_a_leaf_turns_a_flow_round_and_between_racks_it_passes_both_uplinks():
    topology = leaf_spine(dict.fromkeys("abcd", RATE), rack_hosts=2, oversubscription=4.0)
    assert names(topology, "a", "b") == ["a up", "b down"]
    assert names(topology, "b", "c") == ["b up", "leaf-1 up", "leaf-2 down", "c down"]
    uplinks = {link.name: link.bytes_per_s for link in topology.links if link.name.startswith("leaf")}
    assert uplinks == dict.fromkeys(["leaf-1 up", "leaf-1 down", "leaf-2 up", "leaf-2 down"], 2 * RATE / 4)


def test_a_rack_that_is_not_full_has_uplinks_for_the_hosts_it_has():
    topology = leaf_spine(dict.fromkeys("abc", RATE), rack_hosts=2, oversubscription=1.0)
    assert next(link for link in topology.links if link.name == "leaf-2 up").bytes_per_s == RATE


def test_a_host_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        star({"a": RATE}).path("a", "z")
