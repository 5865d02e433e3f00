"""Topic names: builders and parser are inverse, and nothing else parses."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, RecordError
from vitalring.protocol import topics
from vitalring.protocol.topics import Kind, Topic

names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
numbers = st.integers(0, topics.MAX_NUMBER)
digests = st.binary(min_size=32, max_size=32)
steps = st.one_of(
    st.tuples(st.sampled_from(topics.STEPS), st.just(0)),
    st.tuples(st.sampled_from(topics.STEPS_OF_MEMBERS), numbers),
)


@given(names, names, numbers, digests, steps)
def test_every_builder_is_inverted_by_the_parser(federation, cohort, number, digest, said):
    step, attempt = said
    of_gateway = topics.GATEWAY_STEPS[attempt % len(topics.GATEWAY_STEPS)]
    built = {
        topics.plan_topic(federation, cohort): Topic(Kind.PLAN, federation, cohort=cohort),
        topics.uplink_topic(federation, cohort, number): Topic(
            Kind.UPLINK, federation, cohort=cohort, round_number=number
        ),
        topics.receipts_topic(federation, cohort, number): Topic(
            Kind.RECEIPTS, federation, cohort=cohort, round_number=number
        ),
        topics.object_topic(federation, digest): Topic(Kind.OBJECT, federation, digest=digest),
        topics.checkpoint_topic(federation): Topic(Kind.CHECKPOINT, federation),
        topics.entries_topic(federation, number): Topic(Kind.ENTRIES, federation, bundle=number),
        topics.propose_topic(federation): Topic(Kind.PROPOSE, federation),
        topics.sum_topic(federation): Topic(Kind.SUM, federation),
        topics.model_topic(federation): Topic(Kind.MODEL, federation),
        topics.hospital_topic(federation, cohort, step, attempt): Topic(
            Kind.HOSPITAL, federation, hospital=cohort, step=step, attempt=attempt
        ),
        topics.want_topic(federation, cohort): Topic(Kind.WANT, federation, hospital=cohort),
        topics.set_topic(federation, cohort): Topic(Kind.SET, federation, hospital=cohort),
        topics.share_topic(federation, cohort, number): Topic(
            Kind.SHARE, federation, cohort=cohort, round_number=number
        ),
        topics.call_topic(federation, cohort): Topic(Kind.CALL, federation, cohort=cohort),
        topics.enrol_topic(federation, cohort): Topic(Kind.ENROL, federation, cohort=cohort),
        topics.gateway_topic(federation, cohort, of_gateway): Topic(
            Kind.GATEWAY, federation, hospital=cohort, step=of_gateway
        ),
    }
    assert len(built) == len(Kind)
    for name, parsed in built.items():
        assert topics.parse(name) == parsed


def rebuild(topic: Topic) -> str:
    match topic.kind:
        case Kind.PLAN:
            return topics.plan_topic(topic.federation, topic.cohort)
        case Kind.UPLINK:
            return topics.uplink_topic(topic.federation, topic.cohort, topic.round_number)
        case Kind.RECEIPTS:
            return topics.receipts_topic(topic.federation, topic.cohort, topic.round_number)
        case Kind.OBJECT:
            return topics.object_topic(topic.federation, topic.digest)
        case Kind.CHECKPOINT:
            return topics.checkpoint_topic(topic.federation)
        case Kind.ENTRIES:
            return topics.entries_topic(topic.federation, topic.bundle)
        case Kind.PROPOSE:
            return topics.propose_topic(topic.federation)
        case Kind.SUM:
            return topics.sum_topic(topic.federation)
        case Kind.MODEL:
            return topics.model_topic(topic.federation)
        case Kind.HOSPITAL:
            return topics.hospital_topic(
                topic.federation, topic.hospital, topic.step, topic.attempt
            )
        case Kind.WANT:
            return topics.want_topic(topic.federation, topic.hospital)
        case Kind.SET:
            return topics.set_topic(topic.federation, topic.hospital)
        case Kind.SHARE:
            return topics.share_topic(topic.federation, topic.cohort, topic.round_number)
        case Kind.CALL:
            return topics.call_topic(topic.federation, topic.cohort)
        case Kind.ENROL:
            return topics.enrol_topic(topic.federation, topic.cohort)
        case Kind.GATEWAY:
            return topics.gateway_topic(topic.federation, topic.hospital, topic.step)


pieces = st.one_of(
    st.sampled_from(
        [
            *("vr1", "plan", "up", "receipts", "object", "log", "checkpoint", "entries", "inner"),
            *(
                "propose",
                "sum",
                "model",
                "of",
                "want",
                "set",
                *topics.STEPS,
                "ward-3",
                "0",
                "7",
                "07",
                "+",
                "#",
                "",
                "a" * 64,
                "A" * 64,
            ),
        ]
    ),
    st.text(max_size=6),
)
whatever = st.lists(pieces, max_size=7).map("/".join)
nearly = st.tuples(pieces, pieces, pieces).map(lambda last: "/".join(("vr1/f/inner/of", *last)))


@given(whatever | nearly)
@example("vr1/f/up/c/²")  # a digit to str.isdigit, not to us
@example("vr1/f/up/c/7\n")
@example("vr1/f/plan/c\n")
@example(f"vr1/f/up/c/{2**63}")
@example("vr1/f/inner/of/h/part/07")
@example("vr1/f/inner/of/h/commitment/1")
def test_whatever_parses_is_the_one_spelling(name):
    try:
        parsed = topics.parse(name)
    except RecordError:
        return
    assert rebuild(parsed) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "vr1",
        "vr2/f/plan/c",
        "vr1/f/plan",
        "vr1/f/plan/c/1",
        "vr1/F/plan/c",
        "vr1/f/plan/" + "c" * 33,
        "vr1/f/up/c/01",
        "vr1/f/up/c/-1",
        "vr1/f/up/c/+",
        "vr1/f/up/c",
        "vr1/f/object/" + "a" * 63,
        "vr1/f/object/" + "A" * 64,
        "vr1/f/log/other",
        "vr1/f/inner/other",
        "vr1/f/inner/of/h/commitment",
        "vr1/f/inner/of/h/commitment/1",
        "vr1/f/inner/of/h/other/0",
        "vr1/f/inner/of/H/part/0",
        "vr1/f/inner/of/h/part/01",
        "vr1/f/inner/of/h/part/0/0",
        "vr1/f/inner/want",
        "vr1/f/inner/want/+",
        "vr1/f/inner/set/h/0",
        "/vr1/f/plan/c",
        "vr1/f/plan/c/",
        "$SYS/broker/uptime",
    ],
)
def test_refuses_what_no_builder_makes(name):
    with pytest.raises(RecordError):
        topics.parse(name)


@pytest.mark.parametrize("bad", ["", "A", "a/b", "+", "#", "a b", "ä", "a" * 33, "a\n"])
def test_builders_refuse_names_that_would_change_the_topic(bad):
    with pytest.raises(ConfigError):
        topics.plan_topic("fed", bad)
    with pytest.raises(ConfigError):
        topics.uplink_filter(bad)


def test_builders_refuse_numbers_and_digests_out_of_range():
    with pytest.raises(ConfigError):
        topics.uplink_topic("fed", "ward", -1)
    with pytest.raises(ConfigError):
        topics.entries_topic("fed", topics.MAX_NUMBER + 1)
    with pytest.raises(ConfigError):
        topics.object_topic("fed", b"short")


def test_builders_refuse_steps_that_nobody_listens_to():
    with pytest.raises(ConfigError, match="use one of"):
        topics.hospital_topic("fed", "mercy", "other")
    with pytest.raises(ConfigError, match="attempt 0"):
        topics.hospital_topic("fed", "mercy", "commitment", 1)
    with pytest.raises(ConfigError):
        topics.hospital_topic("fed", "mercy", "part", -1)
    with pytest.raises(ConfigError):
        topics.hospital_filter("fed", "other")


def matches(filter_: str, topic: str) -> bool:
    wanted, levels = filter_.split("/"), topic.split("/")
    pairs = zip(wanted, levels, strict=False)
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in pairs)


@given(names, names, steps, st.sampled_from(topics.STEPS))
def test_a_filter_takes_the_topics_of_its_step_from_every_hospital(
    federation, hospital, said, step
):
    topic = topics.hospital_topic(federation, hospital, *said)
    assert matches(topics.hospital_filter(federation), topic)
    assert matches(topics.hospital_filter(federation, step), topic) == (step == said[0])
    assert matches(topics.want_filter(federation), topics.want_topic(federation, hospital))
