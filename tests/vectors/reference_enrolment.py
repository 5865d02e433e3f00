"""A second implementation of SPEC 13.3, from the text alone, over plain integers.

It shares no code with the library, only the curve and proofs of `reference_lsag`; it is slow,
not constant-time, and must never see a real secret. Failures are named by class: ``length``,
``scalar``, ``point``, ``closure``.
"""

from reference_lsag import InvalidError, count, frame, prove_possession, verify_possession

SUITE = b"vitalring/enrolment/1/edwards25519-sha512"


def asked(call):
    """What both contexts say of the call."""
    return frame(
        call["federation"].encode(),
        call["cohort"].encode(),
        count(call["epoch"]),
        call["challenge"],
    )


def new_context(call, said):
    """Context of the new key's proof."""
    if said["previous"] is None:
        voucher = frame(b"ticket", said["ticket"])
    else:
        voucher = frame(b"key", count(said["previous"]["epoch"]), said["previous"]["key"])
    return frame(SUITE + b"/new", asked(call), voucher)


def previous_context(call, epoch, new):
    """Context of the previous key's proof."""
    return frame(SUITE + b"/previous", asked(call), count(epoch), new)


def prove(call, said, new, old, entropy):
    """Both proofs of an answer: by the new key's secret, and by the previous one's if any."""
    possession = prove_possession(new, new_context(call, said), entropy)
    if said["previous"] is None:
        return possession, b""
    context = previous_context(call, said["previous"]["epoch"], said["key"])
    return possession, prove_possession(old, context, entropy)


def verify(call, said):
    """SPEC 13.5, check 9."""
    verify_possession(said["key"], new_context(call, said), said["possession"])
    if (old := said["previous"]) is not None:
        if old["key"] == said["key"]:
            raise InvalidError("closure")
        context = previous_context(call, old["epoch"], said["key"])
        verify_possession(old["key"], context, old["proof"])
