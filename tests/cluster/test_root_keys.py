"""Root keys are found once for each laboratory, and a file that is not what was written is no key."""

import hashlib
import json

import pytest

from cluster import root_keys
from cluster.root_keys import RootKeys, product_root
from psp.product_root import RootName
from psp.rsa_signing import prime, rsa_key

SEED, BITS = b"seed of a small key", 512


@pytest.fixture
def store(tmp_path):
    return RootKeys(tmp_path / "below" / "laboratory-1.json")


@pytest.fixture
def searches(monkeypatch):
    """Seeds that a key was searched for."""
    found = []

    def search(seed, bits):
        found.append(seed)
        return rsa_key(seed, bits)

    monkeypatch.setattr(root_keys, "rsa_key", search)
    return found


def test_a_key_is_searched_for_once_and_is_the_seeds(store, searches):
    first = store(SEED, BITS)
    assert first == rsa_key(SEED, BITS)
    assert RootKeys(store.path)(SEED, BITS) == first
    assert searches == [SEED]
    assert [path.name for path in store.path.parent.iterdir()] == ["laboratory-1.json"]
    store(b"another", BITS)
    assert RootKeys(store.path)(SEED, BITS) == first
    assert searches == [SEED, b"another"]


def change(entry, **fields):
    return {**entry, **fields}


DAMAGES = {
    "cut short": lambda text: text[:-40],
    "empty": lambda _: "",
    "no JSON object": lambda _: "[1, 2]",
    "nested without end": lambda _: "[" * 100_000,
    "not ASCII": lambda text: text + "\N{SNOWMAN}",
    "too long": lambda text: text + " " * (1 << 20),
    "other format": lambda text: text.replace('"format": 1', '"format": 2'),
    "keys are no object": lambda _: '{"format": 1, "keys": 5}',
    "a digit changed": lambda text: text.replace('"p": "', '"p": "1'),
    "other size": lambda text: text.replace('"bits": 512', '"bits": 1024'),
    "no prime": lambda text: text.replace('"q"', '"r"'),
    "a number for a text": lambda text: text.replace('"p": "', '"p": 5, "x": "'),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_replaced(store, searches, kind):
    key = store(SEED, BITS)
    good = store.path.read_text()
    bad = DAMAGES[kind](good)
    assert bad != good
    store.path.write_text(bad, "utf-8")
    assert store(SEED, BITS) == key
    assert searches == [SEED, SEED]
    assert json.loads(store.path.read_text())["keys"].items() >= json.loads(good)["keys"].items()


def test_a_key_under_another_ones_name_is_not_taken(store, searches):
    store(SEED, BITS)
    other = store(b"another", BITS)
    text = json.loads(store.path.read_text())
    mine, theirs = (hashlib.sha256(seed).hexdigest()[:32] for seed in (SEED, b"another"))
    text["keys"][mine] = text["keys"][theirs]
    store.path.write_text(json.dumps(text))
    assert store(SEED, BITS) != other
    assert searches == [SEED, b"another", SEED]


def test_where_nothing_can_be_written_the_key_is_the_same(tmp_path, searches):
    (tmp_path / "file").touch()
    assert RootKeys(tmp_path / "file" / "laboratory-1.json")(SEED, BITS) == rsa_key(SEED, BITS)
    assert searches == [SEED]


def test_the_package_brings_the_keys_of_laboratory_0(tmp_path, searches):
    """All of them, and one checked to be what its seed gives."""
    store = RootKeys(tmp_path / "laboratory-0.json")
    for line in ("Naples", "Rome", "Milan", "Genoa", "Turin"):
        for name in RootName if product_root(line).line.tcb else (RootName.ARK, RootName.ASK):
            key = store(product_root(line).key_seed(name), product_root(line).line.root_bits)
            assert key.modulus.bit_length() == product_root(line).line.root_bits
    assert searches == []
    seed = product_root("Genoa").key_seed(RootName.ARK)
    assert store(seed, 4096).p == prime(seed + b"p", 2048)


def test_laboratories_and_users_keep_their_keys_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert root_keys.cache_folder() == tmp_path / "sevfleet"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert root_keys.cache_folder() == tmp_path / ".cache" / "sevfleet"
    assert product_root("Milan", 1).key_seed(RootName.ARK) != product_root("Milan").key_seed(RootName.ARK)
