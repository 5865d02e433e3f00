"""One update alone through the gateway's admission, as it goes with many in the service."""

from vitalring.gateway import admission


def check(db, current, box, key, now_ms, open_message=admission.open_update):
    """Every check; None where it is counted already. Raises RefusedError."""
    screened = admission.screen(db, current, box, key, now_ms, open_message)
    if screened is None:
        return None
    judged = admission.judge(db, current, [screened], max_passes=1)
    for _, refusal in judged.refused:
        raise refusal
    return judged.valid[0]


def fold(db, current, admitted, spent_us, *, keep, add=True):
    """Count a checked update. Raises RefusedError."""
    for _, refusal in admission.count(db, current, [admitted], spent_us, keep=keep, add=add):
        raise refusal
