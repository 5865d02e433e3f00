"""A device's ring keys: drawn once, on the disk before anybody hears of them, erased for good."""

import pytest

from vitalring.edge_agent import keyring
from vitalring.edge_agent.keyring import MOST_KEYS, Keyring
from vitalring.errors import ConfigError, SignatureError, StorageError
from vitalring.files import read_secret


@pytest.fixture
def keys(tmp_path):
    return Keyring(tmp_path / "keys")


def test_a_key_is_drawn_once_and_is_its_owners_alone(keys):
    assert keys.epochs() == ()
    assert keys.pair(7) is None
    drawn = keys.draw(7)
    assert keys.path(7).read_bytes() == drawn.secret
    assert keys.path(7).stat().st_mode & 0o777 == 0o600
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    assert keys.draw(7) == keys.pair(7) == keys.require(7) == drawn
    assert keys.draw(8) != drawn
    assert keys.epochs() == (7, 8)


def test_what_a_power_cut_left_of_a_draw_is_not_a_key(keys):
    keys.folder.mkdir(mode=0o700)
    (keys.folder / "ring-1.new").write_bytes(b"half")
    assert keys.epochs() == ()
    assert keys.pair(1) is None
    drawn = keys.draw(1)
    assert Keyring(keys.folder).pair(1) == drawn
    assert [path.name for path in keys.folder.iterdir()] == ["ring-1.key"]


def test_an_erased_key_leaves_a_marker_and_never_comes_back(keys):
    keys.draw(1)
    keys.draw(2)
    keys.erase(1)
    assert keys.epochs() == (2,)
    assert keys.is_erased(1)
    assert not keys.is_erased(2)
    assert not keys.path(1).exists()
    assert keys.pair(1) is None
    with pytest.raises(ConfigError, match="epoch 1 is erased: no other is drawn"):
        keys.draw(1)
    with pytest.raises(ConfigError, match="epoch 1 is erased"):
        keys.require(1)
    with pytest.raises(ConfigError, match="not enrolled in epoch 3"):
        keys.require(3)
    with pytest.raises(ConfigError, match="nothing to erase"):
        keys.erase(1)


def test_a_power_cut_between_marker_and_erasure_leaves_an_erased_key(keys, monkeypatch):
    keys.draw(1)

    def cut(_path):
        raise StorageError("the power is gone")

    with monkeypatch.context() as broken:
        broken.setattr(keyring, "erase_ring_key", cut)
        with pytest.raises(StorageError, match="the power is gone"):
            keys.erase(1)
    # The bytes are still there, and nothing uses them.
    assert read_secret(keys.path(1), 32) != bytes(32)
    assert keys.is_erased(1)
    assert keys.epochs() == ()
    assert keys.pair(1) is None
    assert keys.erase_before(2) == (1,)
    assert not keys.path(1).exists()


def test_earlier_keys_are_erased_and_later_ones_stay(keys):
    for epoch in (1, 2, 10, 11):
        keys.draw(epoch)
    assert keys.erase_before(10) == (1, 2)
    assert keys.erase_before(10) == ()
    assert keys.epochs() == (10, 11)
    assert [keys.is_erased(epoch) for epoch in (1, 2, 9, 10)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("content", "mode", "error"),
    [
        (b"", 0o600, ConfigError),
        (bytes(32), 0o600, SignatureError),
        (b"\xff" * 32, 0o600, SignatureError),
        (b"\x01" + bytes(31), 0o644, ConfigError),
    ],
)
def test_what_is_no_key_is_neither_used_nor_erased(keys, content, mode, error):
    keys.draw(2)
    keys.path(1).write_bytes(content)
    keys.path(1).chmod(mode)
    for act in (keys.pair, keys.draw, keys.erase):
        with pytest.raises(error):
            act(1)
    assert keys.path(1).read_bytes() == content
    assert not keys.is_erased(1)


def test_other_files_are_no_keys(keys):
    keys.draw(3)
    for name in ("ring-03.key", "ring-.key", "ring-4.key.bak", "ring--1.key", "ring-5.erased.old"):
        (keys.folder / name).write_bytes(bytes(32))
    assert keys.epochs() == (3,)


def test_keys_are_bounded(keys):
    for epoch in range(MOST_KEYS):
        keys.draw(epoch)
    with pytest.raises(ConfigError, match="of epochs that never began"):
        keys.draw(MOST_KEYS)
    assert keys.draw(0) == keys.pair(0)
    keys.erase(0)
    keys.draw(MOST_KEYS)


def test_secrets_do_not_show(keys):
    assert keys.draw(1).secret.hex() not in repr((keys, keys.pair(1)))
