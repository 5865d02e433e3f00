"""What a submission may show of its device."""

from hypothesis import given
from hypothesis import strategies as st

from vitalring.edge_agent.daemon import coarse_expiry_s


@given(st.integers(0, 2**53))
def test_expiry_covers_the_time_left_and_fits_mqtt(left_ms):
    expiry = coarse_expiry_s(left_ms)
    assert 1 <= expiry < 2**32
    assert expiry * 1000 >= min(left_ms, 2**31 * 1000)


def test_clocks_a_minute_apart_show_the_same_expiry():
    day = 86_400_000
    assert {coarse_expiry_s(day + skew) for skew in range(-60_000, 60_001, 1000)} == {2**17}


def test_a_passed_deadline_expires_at_once():
    assert coarse_expiry_s(-5) == 1
