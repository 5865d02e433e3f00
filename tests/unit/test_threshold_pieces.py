"""Who holds which piece (SPEC 5.12), and pieces as bytes (SPEC 5.15)."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.threshold.pieces import Access, SecretPiece, decode_piece, encode_piece

SHAPES = [Access(2, 2), Access(3, 3), Access(3, 2), Access(5, 5), Access(5, 3), Access(7, 4)]


@pytest.mark.parametrize("access", SHAPES, ids=str)
def test_fewer_than_the_threshold_miss_a_piece_and_the_threshold_has_all(access):
    everything = set(range(access.pieces))
    for few in combinations(range(access.hospitals), access.threshold - 1):
        held = set().union(*(access.held_by(h) for h in few))
        assert len(everything - held) == 1
    for enough in combinations(range(access.hospitals), access.threshold):
        assert set().union(*(access.held_by(h) for h in enough)) == everything


@pytest.mark.parametrize("access", SHAPES, ids=str)
def test_each_piece_is_used_once_whoever_decrypts(access):
    for members in combinations(range(access.hospitals), access.threshold):
        used = [p for h in members for p in access.assigned(h, members)]
        assert sorted(used) == list(range(access.pieces))
        for hospital in members:
            held = access.held_by(hospital)
            assert set(access.assigned(hospital, members)) <= set(held)


@pytest.mark.parametrize("access", SHAPES, ids=str)
def test_whatever_set_below_the_threshold_is_corrupt_an_honest_dealer_drew_what_it_lacks(access):
    for corrupt in combinations(range(access.hospitals), access.threshold - 1):
        lacking = [p for p in range(access.pieces) if not set(corrupt) & set(access.holders(p))]
        assert lacking
        assert all(access.dealer(p) not in corrupt for p in lacking)
        # Only one member who is not corrupt ever uses it.
        for members in combinations(range(access.hospitals), access.threshold):
            users = [h for h in members for p in access.assigned(h, members) if p in lacking]
            assert len(users) == len(lacking)


@pytest.mark.parametrize("access", SHAPES, ids=str)
def test_every_hospital_deals_and_dealers_hold(access):
    dealt = [access.dealt_by(h) for h in range(access.hospitals)]
    assert all(dealt)
    assert sorted(p for pieces in dealt for p in pieces) == list(range(access.pieces))
    assert all(access.dealer(p) in access.holders(p) for p in range(access.pieces))


@pytest.mark.parametrize("members", [(0,), (0, 0), (0, 1, 2), (1, 2), (0, 3), (-1, 0)])
def test_members_that_do_not_fit_are_refused(members):
    with pytest.raises(ConfigError, match="decrypt"):
        Access(3, 2).assigned(0, members)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=16, max_size=16))
def test_pieces_survive_their_encoding(values):
    piece = SecretPiece(3, np.array(values, dtype=np.int8))
    data = encode_piece(piece)
    # Two bits a coefficient, the first one lowest.
    number = sum((value % 3) << 2 * i for i, value in enumerate(values))
    assert data == number.to_bytes(4, "little")
    back = decode_piece(data, 3, 16)
    assert back.index == 3
    assert back.ternary.tolist() == values


@given(st.binary(max_size=8))
def test_any_bytes_are_refused_or_the_one_encoding(data):
    try:
        piece = decode_piece(data, 0, 16)
    except CiphertextError:
        digits = [byte >> shift & 3 for byte in data for shift in (0, 2, 4, 6)]
        assert len(data) != 4 or 3 in digits
    else:
        assert encode_piece(piece) == data


def test_a_piece_shows_nothing():
    assert repr(SecretPiece(1, np.ones(8, dtype=np.int8))) == "SecretPiece(index=1)"
