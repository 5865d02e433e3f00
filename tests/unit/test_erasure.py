"""A ring key's erasure: the bytes are overwritten where they lie, and only a key's."""

import os
from pathlib import Path

import pytest
from device_fixture import keyring

from vitalring.edge_agent.erasure import erase_ring_key
from vitalring.errors import ConfigError, SignatureError, StorageError
from vitalring.protocol import lsag
from vitalring.tools import cli


@pytest.fixture
def keys():
    return lsag.keygen()


@pytest.fixture
def path(tmp_path, keys):
    found = tmp_path / "ring.key"
    found.write_bytes(keys.secret)
    found.chmod(0o600)
    return found


def test_the_key_is_overwritten_and_gone(path, tmp_path):
    # A second name for the same bytes on the disk shows what became of them.
    os.link(path, tmp_path / "same")
    erase_ring_key(path)
    assert not path.exists()
    assert (tmp_path / "same").read_bytes() == bytes(32)


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", ConfigError), (b"x" * 33, ConfigError), (b"\xff" * 32, SignatureError)],
)
def test_what_is_no_ring_key_stays(path, content, error):
    path.write_bytes(content)
    with pytest.raises(error):
        erase_ring_key(path)
    assert path.read_bytes() == content


def test_a_key_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        erase_ring_key(tmp_path / "ring.key")


def test_after_a_crash_half_way_it_ends_what_it_began(path, monkeypatch):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError, match="cannot be erased: Input/output error"):
            erase_ring_key(path)
    assert path.read_bytes() == bytes(32)
    erase_ring_key(path)
    assert not path.exists()


def test_the_command_asks_to_be_meant(keys, tmp_path, capsys):
    folder = keyring(tmp_path / "keys", keys)
    path = folder.path(1)
    toml = tmp_path / "agent.toml"
    toml.write_text(
        f'federation = "federation.cbor"\nauthority_key = "{"00" * 32}"\ncohort = "ward"\n'
        'ring_keys = "keys"\nstate_dir = "state"\ndata = "."\ndevice = "d0"\n'
        '[broker]\nurl = "mqtt://localhost:1883"\n'
    )
    command = ["agent", "erase-key", "--config", str(toml), "--epoch", "1"]
    assert cli.main(command) == 2
    assert "give --yes" in capsys.readouterr().err
    assert path.read_bytes() == keys.secret
    assert cli.main([*command, "--yes"]) == 0
    assert "ring-1.key: erased" in capsys.readouterr().out
    assert not path.exists()
    assert folder.is_erased(1)
    assert cli.main([*command, "--yes"]) == 2
