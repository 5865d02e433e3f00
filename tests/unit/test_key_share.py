"""The file of a key share, and its encrypted backup (SPEC 5.21)."""

import nacl.pwhash.argon2id as argon2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.aggregator import key_backup, key_share
from vitalring.errors import ConfigError
from vitalring.protocol.quantise import Codec
from vitalring.protocol.threshold.joint_key import contribute, join
from vitalring.protocol.threshold.params import choose_threshold_params
from vitalring.protocol.threshold.pieces import Access

CONTEXT = bytes(range(32))
PASSPHRASE = "correct horse battery staple"
CHEAP = key_backup.Cost(argon2.OPSLIMIT_MIN, argon2.MEMLIMIT_MIN)


def params_of(hospitals, threshold, dimension=200):
    return choose_threshold_params(
        Codec(n_max=20, clip=1.0, weight_cap=1),
        dimension,
        Access(hospitals, threshold),
        releases=10,
    )


PARAMS = params_of(3, 2)


@pytest.fixture(scope="module")
def made():
    """Contributions, the key, and hospital 1's share."""
    each = [contribute(h, CONTEXT, PARAMS) for h in range(3)]
    contributions = [contribution for _, contribution in each]
    pieces = {piece.index: piece for ours, _ in each for piece in ours}
    key = join(contributions, CONTEXT, PARAMS)
    held = tuple(pieces[index] for index in PARAMS.access.held_by(1))
    return contributions, key, key_share.Share(1, CONTEXT, key, held)


@pytest.fixture
def file(made, tmp_path):
    _, key, share = made
    path = tmp_path / "key.share"
    key_share.save(path, PARAMS, share.pieces, key, hospital=1, context=CONTEXT)
    return path


def same(pieces, others):
    return [(p.index, p.ternary.tolist()) for p in pieces] == [
        (p.index, p.ternary.tolist()) for p in others
    ]


def test_a_share_comes_back_as_it_was(made, file):
    _, key, share = made
    assert file.stat().st_mode & 0o777 == 0o600
    assert same(key_share.load(file, PARAMS), share.pieces)
    loaded = key_share.load_share(file, PARAMS)
    assert (loaded.hospital, loaded.context, loaded.public_key) == (1, CONTEXT, key)


def test_a_share_is_never_overwritten(made, file):
    _, key, share = made
    with pytest.raises(ConfigError, match="exists already"):
        key_share.save(file, PARAMS, share.pieces, key, hospital=1, context=CONTEXT)


def test_a_share_holds_all_that_its_hospital_should(made, tmp_path):
    _, key, share = made
    path = tmp_path / "key.share"
    for pieces, hospital in ((share.pieces[:1], 1), (share.pieces, 0), ((), 1)):
        with pytest.raises(ConfigError, match="holds key pieces"):
            key_share.save(path, PARAMS, pieces, key, hospital=hospital, context=CONTEXT)
    assert not path.exists()


def test_a_share_that_others_can_read_is_refused(file):
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        key_share.load(file, PARAMS)


def test_a_missing_share_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        key_share.load(tmp_path / "none", PARAMS)


@pytest.mark.parametrize("params", [params_of(3, 3), params_of(4, 2), params_of(3, 2, 200_000)])
def test_a_share_of_other_hospitals_or_parameters_is_refused(file, params):
    with pytest.raises(ConfigError, match="other parameters or of another kind"):
        key_share.load(file, params)


@settings(max_examples=50)
@given(st.data())
def test_a_changed_byte_is_refused(made, data):
    _, _, share = made
    good = key_share.encode(share, PARAMS)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    with pytest.raises(ConfigError, match="damaged"):
        key_share.decode(bad, PARAMS, "it")


@given(st.binary(max_size=300))
def test_random_bytes_are_no_share(data):
    with pytest.raises(ConfigError):
        key_share.decode(data, PARAMS, "it")


def test_secrets_show_in_no_representation(made):
    _, _, share = made
    assert repr(share) == f"Share(hospital=1, context={CONTEXT!r})"
    assert "ternary" not in repr(share.pieces)


def test_a_backup_opens_with_its_passphrase_alone(made):
    _, key, share = made
    data = key_backup.seal(share, PARAMS, PASSPHRASE, CHEAP)
    opened = key_backup.open_backup(data, PARAMS, PASSPHRASE)
    assert same(opened.pieces, share.pieces)
    assert (opened.hospital, opened.context, opened.public_key) == (1, CONTEXT, key)
    with pytest.raises(ConfigError, match="passphrase"):
        key_backup.open_backup(data, PARAMS, PASSPHRASE + " ")
    assert key_backup.seal(share, PARAMS, PASSPHRASE, CHEAP) != data


def test_a_backup_shows_no_piece(made):
    _, key, share = made
    data = key_backup.seal(share, PARAMS, PASSPHRASE, CHEAP)
    plain = key_share.encode(share, PARAMS)
    assert not any(plain[at : at + 16] in data for at in range(0, len(plain) - 16, 16))
    assert key[:64] not in data


def test_a_short_passphrase_is_refused(made):
    with pytest.raises(ConfigError, match="12 at least"):
        key_backup.seal(made[2], PARAMS, "eleven char", CHEAP)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_changed_backup_is_refused(made, data):
    good = key_backup.seal(made[2], PARAMS, PASSPHRASE, CHEAP)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    with pytest.raises(ConfigError):
        key_backup.open_backup(bad, PARAMS, PASSPHRASE)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_backup(data):
    with pytest.raises(ConfigError, match="not a backup"):
        key_backup.open_backup(data, PARAMS, PASSPHRASE)


def test_a_backup_cannot_ask_for_all_memory(made):
    greedy = key_backup.Cost(argon2.OPSLIMIT_MIN, 1 << 40)
    with pytest.raises(ConfigError, match="not a backup"):
        data = key_backup.KeyBackup(greedy, bytes(16), b"box")
        key_backup.open_backup(key_backup.encode(data), PARAMS, PASSPHRASE)


def test_a_share_fits_its_key_and_no_other(made):
    contributions, key, share = made
    key_backup.check_share(share, contributions, key, PARAMS)
    other_pieces, other = contribute(0, CONTEXT, PARAMS)
    with pytest.raises(ConfigError, match="another key"):
        key_backup.check_share(share, contributions, key[:-1] + b"\x00", PARAMS)
    with pytest.raises(ConfigError, match="reveal messages"):
        key_backup.check_share(share, [other, *contributions[1:]], key, PARAMS)
    index = other_pieces[0].index
    swapped = tuple(other_pieces[0] if p.index == index else p for p in share.pieces)
    assert not same(swapped, share.pieces)
    wrong = key_share.Share(1, CONTEXT, key, swapped)
    with pytest.raises(ConfigError, match="does not fit its key"):
        key_backup.check_share(wrong, contributions, key, PARAMS)
