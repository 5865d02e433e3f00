"""The enrolment office by itself, before there is a roster and therefore a gateway at work.

Devices of a new federation enrol their first keys here; the gateway goes on with the database
when the study has begun. Whatever the broker holds retained follows from the database.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable

from vitalring.errors import StorageError, TransportError, VitalRingError
from vitalring.gateway import enrolment
from vitalring.gateway.office import Office
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, topics

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_PAUSE_S = 5.0
_PUBLISH_TIMEOUT_S = 10.0
_NO_ROSTER = b""


def serve(
    db: sqlite3.Connection,
    office: Office,
    link: Link,
    topic: str,
    stop: threading.Event,
    now_ms: Callable[[], int],
) -> None:
    """Call for keys on `topic` and take answers until `stop` is set or the call is over.

    `link` listens to the enrolments. The call is cleared at the end.
    """
    said: bytes | None = None
    while not stop.is_set():
        event = link.receive(_TICK_S)
        try:
            if isinstance(event, Message):
                _take(office, link, event, now_ms())
            call = office.look(now_ms())
            if call is None:
                break
            if link.connected and (call != said or isinstance(event, Connected)):
                # Small enough for one message, whatever the broker's limit.
                link.publish(topic, blobs.WHOLE + call, retain=True, timeout_s=_PUBLISH_TIMEOUT_S)
                said = call
        except TransportError as error:
            _log.warning("the call is not published, it will be again: %s", error)
            said = None
        except (StorageError, sqlite3.Error) as error:
            _log.error("the office cannot keep its state, next try in %g s: %s", _PAUSE_S, error)
            stop.wait(_PAUSE_S)
            link.reconnect()
    if link.connected:
        link.publish(topic, b"", retain=True, timeout_s=_PUBLISH_TIMEOUT_S)
    _log.info("%d keys are enrolled", len(enrolment.enrolled(db)))


def _take(office: Office, link: Link, message: Message, now_ms: int) -> None:
    try:
        if message.payload and topics.parse(message.topic).kind is topics.Kind.ENROL:
            if message.retained:
                link.publish(message.topic, b"", retain=True)
            if office.take(message.payload, _NO_ROSTER, now_ms) is not None:
                # No log of a service names a device.
                _log.info("a key is enrolled")
    except (StorageError, TransportError):
        raise
    except VitalRingError as error:
        _log.warning("message on %s dropped: %s", message.topic[:120], error)
    link.ack(message)
