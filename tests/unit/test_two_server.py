"""The sum over two servers: exact sums, shares that tell nothing alone, and hostile bytes."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from vitalring.errors import CiphertextError, ConfigError, EncodingRangeError, VitalRingError
from vitalring.protocol import limits, two_server
from vitalring.protocol.quantise import Codec
from vitalring.protocol.two_server import (
    CHECKS,
    LINK_BYTES,
    ROLES,
    SEED,
    VECTOR,
    SeedSum,
    Shares,
    Unmask,
    VectorSum,
    check_link,
    expand,
    opened,
    share_params,
    share_sum,
    split,
)

DIMENSION = 12
TINY = Codec(n_max=2, clip=1.0, weight_cap=1, bits=2)
SMALL = Codec(n_max=10, clip=1.0, weight_cap=10)
NOISY = Codec(n_max=1_000, clip=1.0, weight_cap=10, noise_width=5_000)
WIDE = Codec(n_max=10_000, clip=1.0, weight_cap=10, bits=16, noise_width=1 << 24)
CODECS = (TINY, SMALL, NOISY, WIDE)
PARAMS = share_params(SMALL, DIMENSION)
FIELDS = np.arange(PARAMS.fields, dtype=np.uint64)


def updates_of(codec):
    params = share_params(codec, DIMENSION)
    one = st.lists(
        st.integers(0, codec.field_max), min_size=params.fields, max_size=params.fields
    ).map(lambda values: np.array(values, np.uint64))
    return st.tuples(st.just(params), st.lists(one, min_size=1, max_size=min(5, codec.n_max)))


def sums_of(shares, params):
    """What each gateway adds up, through its own interface and its own bytes."""
    totals = []
    for role in ROLES:
        scheme = share_sum(role, params)
        total = None
        for each in shares:
            residues = scheme.decode(each.link + each.of(role))
            total = residues if total is None else scheme.add(total, residues)
            total = scheme.decode_sum(scheme.encode_sum(total))
        totals.append(total)
    return totals


def open_sums(shares, params):
    vectors, masks = sums_of(shares, params)
    return VectorSum(params).open_sum(vectors, len(shares), Unmask(masks, params))


# Sums.


@given(st.sampled_from(CODECS).flatmap(updates_of))
def test_the_difference_of_the_sums_is_the_sum(case):
    params, updates = case
    shares = [split(fields, params) for fields in updates]
    np.testing.assert_array_equal(open_sums(shares, params), np.sum(updates, axis=0))


def test_the_fullest_sum_does_not_wrap():
    """n_max updates, all fields at their most, reach below the modulus; one more is refused."""
    params = share_params(Codec(n_max=256, clip=1.0, weight_cap=1), 3)
    most = np.full(params.fields, params.field_max, np.uint64)
    shares = [split(most, params) for _ in range(params.additions)]
    assert (open_sums(shares, params) == params.additions * params.field_max).all()
    with pytest.raises(EncodingRangeError, match="room is for 256"):
        open_sums([*shares, split(np.zeros(params.fields, np.uint64), params)], params)


@pytest.mark.parametrize("codec", CODECS)
def test_the_modulus_is_the_least_power_of_two_that_fits(codec):
    params = share_params(codec, DIMENSION)
    reach = codec.n_max * codec.field_max
    assert reach < 1 << params.width
    assert params.width == 8 or reach >= 1 << (params.width - 1)
    assert params.places % 8 == 0
    assert CHECKS <= params.places - params.fields < CHECKS + 8


def test_a_parameter_costs_little_on_the_wire():
    """8 bits, 1,000 devices, 100,000 parameters, both shares, without signature and seal."""
    params = share_params(Codec(n_max=1_000, clip=1.0, weight_cap=10), 100_000)
    shares = split(np.zeros(params.fields, np.uint64), params)
    assert len(shares.vector) + len(shares.seed) + 2 * LINK_BYTES < 2.26 * 100_000


def test_the_largest_study_has_parameters():
    params = share_params(WIDE, limits.MAX_DIMENSION)
    assert params.vector_bytes < limits.MAX_UPDATE_BYTES


def test_a_bad_codec_is_refused():
    with pytest.raises(ConfigError, match="bits is 40"):
        share_params(Codec(n_max=2, clip=1.0, weight_cap=1, bits=40), DIMENSION)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FIELDS[1:], "fields of 64 bits are shared"),
        (FIELDS.astype(np.int64), "fields of 64 bits are shared"),
        (FIELDS + np.uint64(SMALL.field_max), "exceeds 255"),
    ],
)
def test_what_is_no_update_is_not_shared(fields, message):
    with pytest.raises(EncodingRangeError, match=message):
        split(fields, PARAMS)


# What one gateway sees.


def uniform(values, classes):
    """Whether counts of values below `classes` pass a chi-square test at one in a million."""
    counts = np.bincount(values.astype(np.int64), minlength=classes)
    statistic = ((counts - values.size / classes) ** 2 / (values.size / classes)).sum()
    return statistic < chi2.ppf(1 - 1e-6, classes - 1)


def test_a_masked_vector_is_uniform_whatever_it_masks():
    """Of 4,000 maskings of one update, each place, and each pair of neighbours, is uniform."""
    params = share_params(TINY, 4)
    assert params.width == 8
    fields = np.array([1, 3, 0, 2, 3], np.uint64)
    sums = VectorSum(params)
    seen = np.array([sums.residues(split(fields, params).vector) for _ in range(4_000)])
    for place in range(params.places):
        assert uniform(seen[:, place], 256)
    coarse = seen >> np.uint64(4)
    for place in range(params.places - 1):
        assert uniform(coarse[:, place] * np.uint64(16) + coarse[:, place + 1], 256)
    # The test can fail: what is not masked does not pass it.
    assert not uniform(np.full(4_000, 3), 256)


def test_two_updates_cannot_be_told_apart_by_their_masked_vectors():
    """The same test on the counts of two updates at the two ends of the range."""
    params = share_params(TINY, 4)
    ends = []
    for value in (0, TINY.field_max):
        fields = np.full(params.fields, value, np.uint64)
        shares = [VectorSum(params).residues(split(fields, params).vector) for _ in range(3_000)]
        ends.append(np.bincount(np.concatenate(shares).astype(np.int64), minlength=256))
    low, high = ends
    statistic = ((low - high) ** 2 / (low + high)).sum()
    assert statistic < chi2.ppf(1 - 1e-6, 255)


def test_a_seed_and_its_digest_know_nothing_of_the_update():
    """A seed is drawn without regard to the fields, and so is the link that names it."""
    shares = [split(FIELDS, PARAMS) for _ in range(50)]
    assert len({each.seed for each in shares}) == 50
    seed, salt = bytes(32), bytes(range(32))
    one = two_server._split(FIELDS, PARAMS, seed, salt)
    other = two_server._split(FIELDS * np.uint64(2), PARAMS, seed, salt)
    assert one.seed == other.seed
    assert one.link[32:] == other.link[32:]
    assert one.vector != other.vector


def test_the_link_hides_a_guessed_update_from_the_gateway_with_the_seed():
    """It knows the mask: without the salt it could hash its guess and compare."""
    shares = split(FIELDS, PARAMS)
    vector = VectorSum(PARAMS)
    guess = vector.encode_sum(vector.add(expand(shares.seed, PARAMS), np.pad(FIELDS, (0, 11))))
    assert shares.vector[32:] == guess, "the guess is right"
    salted = two_server._split(FIELDS, PARAMS, shares.seed, bytes(32))
    assert salted.link[:32] != shares.link[:32]
    assert hashlib.sha256(guess).digest() not in shares.link


def test_shares_do_not_show_in_a_representation():
    shares = split(FIELDS, PARAMS)
    assert repr(shares) == "Shares()"
    assert "masks" not in repr(Unmask(expand(shares.seed, PARAMS), PARAMS))


def test_the_mask_of_a_seed_is_fixed():
    """Gateways of other versions must expand alike: SHAKE-256 of domain and seed, bit by bit."""
    stream = hashlib.shake_256(b"vitalring/share-mask/1\x00" + bytes(32)).digest(100)
    number, mask = int.from_bytes(stream, "little"), expand(bytes(32), PARAMS)
    places = range(min(PARAMS.places, 800 // PARAMS.width))
    assert [int(mask[i]) for i in places] == [
        number >> (i * PARAMS.width) & ((1 << PARAMS.width) - 1) for i in places
    ]


# Shares that do not fit.


def test_halves_of_different_updates_do_not_combine():
    one, other = split(FIELDS, PARAMS), split(FIELDS, PARAMS)
    mixed = Shares(one.vector, other.seed)
    for link in (one.link, other.link):
        check_link(mixed.link, mixed.vector, VECTOR)
        assert link != mixed.link
    with pytest.raises(CiphertextError, match="link names"):
        SeedSum(PARAMS).decode(one.link + other.seed)
    with pytest.raises(CiphertextError, match="link names"):
        VectorSum(PARAMS).decode(one.link + other.vector)


def test_a_share_is_not_taken_for_the_other_kind():
    params = share_params(Codec(n_max=2, clip=1.0, weight_cap=1, bits=2), 1)
    shares = split(np.zeros(params.fields, np.uint64), params)
    with pytest.raises(CiphertextError, match="link names"):
        check_link(shares.link, shares.seed, VECTOR)
    with pytest.raises(CiphertextError, match="link names"):
        check_link(shares.link, shares.vector, SEED)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
def test_a_changed_byte_is_noticed(role, data):
    shares = split(FIELDS, PARAMS)
    sent = bytearray(shares.link + shares.of(role))
    # A gateway checks its own half of the link; the other half is under the ring signature.
    own = [*range(32 * role, 32 * role + 32), *range(LINK_BYTES, len(sent))]
    sent[data.draw(st.sampled_from(own))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CiphertextError):
        share_sum(role, PARAMS).decode(bytes(sent))


@pytest.mark.parametrize("role", ROLES)
@given(st.binary(max_size=2 * (LINK_BYTES + 64)))
def test_hostile_bytes_are_refused_and_nothing_else(role, data):
    scheme = share_sum(role, PARAMS)
    for read in (scheme.decode, scheme.decode_sum):
        try:
            residues = read(data)
        except CiphertextError:
            continue
        assert read == scheme.decode_sum, "nobody hits a digest by chance"
        assert scheme.encode_sum(residues) == data


@pytest.mark.parametrize("role", ROLES)
def test_mutations_of_an_update_are_refused(role):
    shares, scheme, rng = split(FIELDS, PARAMS), share_sum(role, PARAMS), random.Random(7)
    good = shares.link + shares.of(role)
    foreign = range(32 * (1 - role), 32 * (1 - role) + 32)
    for _ in range(20_000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            match rng.randint(0, 2):
                case 0 if bad:
                    bad[rng.randrange(len(bad))] ^= rng.randint(1, 255)
                case 1 if bad:
                    del bad[rng.randrange(len(bad))]
                case _:
                    bad.insert(rng.randint(0, len(bad)), rng.randint(0, 255))
        rest = [b for i, b in enumerate(bad) if i not in foreign]
        if len(bad) == len(good) and rest == [b for i, b in enumerate(good) if i not in foreign]:
            continue
        with pytest.raises(CiphertextError):
            scheme.decode(bytes(bad))


@given(st.binary(min_size=PARAMS.vector_bytes, max_size=PARAMS.vector_bytes))
def test_every_string_of_the_right_length_is_one_sum(data):
    scheme = VectorSum(PARAMS)
    assert scheme.encode_sum(scheme.decode_sum(data)) == data


def test_a_seed_has_one_length():
    for length in (0, 31, 33):
        with pytest.raises(CiphertextError, match="a seed has 32 bytes"):
            expand(bytes(length), PARAMS)


# What opening refuses.


def test_sums_over_different_sets_do_not_open():
    """One device only at one of the gateways: what is left is noise, and is noticed."""
    shares = [split(FIELDS, PARAMS) for _ in range(4)]
    vectors, _ = sums_of(shares, PARAMS)
    _, masks = sums_of(shares[:3], PARAMS)
    for count in (3, 4):
        with pytest.raises(EncodingRangeError, match="reserved place"):
            VectorSum(PARAMS).open_sum(vectors, count, Unmask(masks, PARAMS))


def test_a_device_whose_shares_do_not_fit_is_noticed():
    one, other = split(FIELDS, PARAMS), split(FIELDS, PARAMS)
    bad = Shares(one.vector, other.seed)
    with pytest.raises(EncodingRangeError, match="reserved place"):
        open_sums([bad, split(FIELDS, PARAMS), split(FIELDS, PARAMS)], PARAMS)


def test_a_field_beyond_reach_is_refused():
    total = np.zeros(PARAMS.places, np.uint64)
    total[3] = 2 * SMALL.field_max + 1
    with pytest.raises(EncodingRangeError, match="too large for 2 updates"):
        opened(total, 2, PARAMS)
    assert int(opened(total, 3, PARAMS)[3]) == 2 * SMALL.field_max + 1


@pytest.mark.parametrize("count", [0, -1, SMALL.n_max + 1])
def test_a_count_beyond_the_plan_is_refused(count):
    with pytest.raises(EncodingRangeError, match="room is for 10"):
        opened(np.zeros(PARAMS.places, np.uint64), count, PARAMS)


def test_a_sum_of_another_shape_is_refused():
    with pytest.raises(VitalRingError, match="shape"):
        opened(np.zeros(PARAMS.places + 8, np.uint64), 1, PARAMS)
