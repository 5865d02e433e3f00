"""Changes of encoded bytes that know their structure, and a storm of them against a decoder.

`change_words` is for rows of 32-byte points and scalars, as signatures and proofs are;
`change_record` for CBOR records, with those that are signed inside them. A change may give the
same bytes back; whoever uses one compares.
"""

import importlib
import random
import secrets
import sys
from pathlib import Path

import cbor2
import psutil

from vitalring.errors import SignatureError, VitalRingError
from vitalring.protocol import cbor, group

sys.path.insert(0, str(Path(__file__).parents[1] / "vectors"))
curve = importlib.import_module("reference_lsag")

WORD = 32
TORSION = [curve.encode_point(point) for point in curve.torsion_points()]
"""Encodings of the eight points whose order divides eight, the identity first."""
FIELD = 2**255 - 19
MAX_GROWTH_BYTES = 32 << 20

_BYTES, _TEXT, _MAP = 2, 3, 5


def storm(originals, change, read, count):
    """Have `read(index, bytes)` refuse `count` changes of the originals with an error of ours.

    `change(rng, bytes, spares)` is given all originals as spares. Returns by how many bytes this
    process's memory grew after the first tenth. What fails is raised again by its seed.
    """
    seed = secrets.randbits(64)
    rng, refused, base = random.Random(seed), 0, 0
    while refused < count:
        index = rng.randrange(len(originals))
        changed = originals[index]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed = change(rng, changed, originals)
        if changed in originals:
            continue
        where = f"seed {seed}, mutation {refused} of original {index}: {changed.hex()}"
        try:
            read(index, changed)
        except VitalRingError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {where}") from error
        else:
            raise AssertionError(f"accepted: {where}")
        if refused == count // 10:
            base = psutil.Process().memory_info().rss
    growth = psutil.Process().memory_info().rss - base
    assert growth < MAX_GROWTH_BYTES
    return growth


# Any bytes.


def _flip(rng, data, _spares):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng, data, _spares):
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _splice(rng, data, spares):
    """Take the bytes of another original at the same place."""
    at = rng.randrange(len(data))
    end = at + rng.randint(1, 64)
    data[at:end] = rng.choice(spares)[at:end]


def _copy(rng, data, _spares):
    at, other, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 64)
    data[at : at + size] = data[other : other + size]


def _length(rng, data, _spares):
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))


def _cut(rng, data, _spares):
    del data[rng.randrange(len(data)) :]


def _extend(rng, data, _spares):
    data += rng.randbytes(rng.randint(1, 64)) if rng.random() < 0.5 else bytes(rng.randint(1, 64))


_ANY = (_flip, _byte, _splice, _copy, _length, _cut, _extend)


def _apply(rng, changes, data, spares):
    changed = bytearray(data or b"\x00")
    rng.choice(changes)(rng, changed, spares)
    return bytes(changed)


# Rows of points and scalars.


def change_words(rng, data, spares):
    """Change a row of 32-byte words in one way that catches decoders of points and scalars."""
    return _apply(rng, _WORDS + _ANY, data, spares)


def _place(rng, data):
    return WORD * rng.randrange(max(1, len(data) // WORD))


def _word_of_another(rng, data, spares):
    at = _place(rng, data)
    data[at : at + WORD] = rng.choice(spares)[at : at + WORD]


def _word_of_another_place(rng, data, spares):
    at, spare = _place(rng, data), rng.choice((bytes(data), *spares))
    other = _place(rng, spare)
    data[at : at + WORD] = spare[other : other + WORD]


def _random_word(rng, data, _spares):
    at = _place(rng, data)
    data[at : at + WORD] = rng.randbytes(WORD)


def _swapped_words(rng, data, _spares):
    at, other = _place(rng, data), _place(rng, data)
    data[at : at + WORD], data[other : other + WORD] = (
        data[other : other + WORD],
        data[at : at + WORD],
    )


def _word_more_or_less(rng, data, _spares):
    at = _place(rng, data)
    if rng.random() < 0.5:
        del data[at : at + WORD]
    else:
        data[at:at] = data[at : at + WORD]


def _moved_scalar(rng, data, _spares):
    """By one, or by a multiple of the order: then the same scalar in another encoding."""
    at, order = _place(rng, data), group.ORDER
    value = int.from_bytes(data[at : at + WORD], "little")
    value += rng.choice((1, -1, order, 2 * order, rng.randrange(1, 16) * order, -order))
    data[at : at + WORD] = (value % 2**256).to_bytes(WORD, "little")


def _negated_scalar(rng, data, _spares):
    at = _place(rng, data)
    value = -int.from_bytes(data[at : at + WORD], "little") % group.ORDER
    data[at : at + WORD] = value.to_bytes(WORD, "little")


def _negated_point(rng, data, _spares):
    at = _place(rng, data)
    data[min(at + WORD, len(data)) - 1] ^= 0x80


def _point_with_torsion(rng, data, _spares):
    """Add a point of small order, at one place or the same at two."""
    torsion = rng.choice(TORSION[1:])
    for at in {_place(rng, data) for _ in range(rng.choice((1, 2)))}:
        try:
            data[at : at + WORD] = group.add(bytes(data[at : at + WORD]), torsion)
        except (SignatureError, TypeError, ValueError):
            continue  # a scalar there, or no whole word


def _small_order(rng, data, _spares):
    """A point of small order, in its encoding or in one that is not canonical."""
    at, word = _place(rng, data), int.from_bytes(rng.choice(TORSION), "little")
    y, sign = word % 2**255, word >> 255
    if y < 19 and rng.random() < 0.5:
        y += FIELD
    if rng.random() < 0.2:
        sign ^= 1
    data[at : at + WORD] = (y | sign << 255).to_bytes(WORD, "little")


def _special_word(rng, data, _spares):
    at, order = _place(rng, data), group.ORDER
    values = (0, 1, order - 1, order, order + 1, FIELD - 1, FIELD, 2**252, 2**255, 2**256 - 1)
    data[at : at + WORD] = rng.choice(values).to_bytes(WORD, "little")


_WORDS = (
    _word_of_another,
    _word_of_another_place,
    _random_word,
    _swapped_words,
    _word_more_or_less,
    _moved_scalar,
    _moved_scalar,
    _negated_scalar,
    _negated_point,
    _point_with_torsion,
    _small_order,
    _special_word,
)


# Records.


def change_record(rng, data, spares):
    """Change an encoded record: its bytes, the heads of its items, its spelling or its values."""
    changes = (_any_bytes, _head, _head, _other_spelling, _other_values, _other_values)
    return rng.choice(changes)(rng, data, spares)


def _any_bytes(rng, data, spares):
    return _apply(rng, _ANY, data, spares)


def heads(data):
    """Where the items of CBOR stand: (begin, end of the head, major type, argument)."""
    found, position = [], 0
    while position < len(data):
        kind, argument, end = cbor._head("item", data, position)
        found.append((position, end, kind, argument))
        position = end + (argument if kind in (_BYTES, _TEXT) else 0)
    return found


def _encoded_head(kind, argument, width):
    """A head whose argument takes so many bytes after the first; 0 is for one inside the first."""
    if width == 0:
        return bytes([kind << 5 | argument])
    return bytes([kind << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + argument.to_bytes(
        width, "big"
    )


def _head(rng, data, spares):
    """Change one head: a longer spelling, another length or type, a tag, no definite length."""
    try:
        begin, end, kind, argument = rng.choice(heads(data))
    except (VitalRingError, IndexError):
        return _any_bytes(rng, data, spares)  # no CBOR any more
    before, after = data[:begin], data[end:]
    match rng.randrange(5):
        case 0:
            wider = [width for width in (1, 2, 4, 8) if width > end - begin - 1]
            longer = _encoded_head(kind, argument, rng.choice(wider)) if wider else b""
            return before + longer + after
        case 1:
            moved = min(2**64 - 1, max(0, argument + rng.choice((-1, 1, 2**16))))
            width = next(w for w in (0, 1, 2, 4, 8) if moved < (256**w if w else 24))
            return before + _encoded_head(kind, moved, width) + after
        case 2:
            return before + bytes([data[begin] ^ rng.randrange(1, 8) << 5]) + data[begin + 1 :]
        case 3:
            # Of indefinite length: strings close after their content, the rest at the very end.
            content = end + argument if kind in (_BYTES, _TEXT) else len(data)
            closed = data[end:content] + b"\xff" + data[content:]
            return before + bytes([kind << 5 | 31]) + closed
        case _:
            tag = rng.choice((b"\xc0", b"\xc2", b"\xd8\x20", b"\xd9\xd9\xf7"))
            return before + tag + data[begin:]


def _read(data):
    """The values of CBOR; None where an earlier change left none."""
    try:
        return cbor2.loads(data)
    except Exception:  # a foreign decoder may raise anything on such bytes
        return None


def _other_spelling(rng, data, spares):
    """The same values, written in another way."""
    plain = _read(data)
    if not isinstance(plain, dict) or not plain:
        return _any_bytes(rng, data, spares)
    names = list(plain)
    rng.shuffle(names)
    match rng.randrange(5):
        case 0:
            return cbor2.dumps({name: plain[name] for name in names})
        case 1:
            return b"\xbf" + data[1:] + b"\xff"
        case 2:
            return b"\xd9\xd9\xf7" + data
        case 3:
            # One key twice: the first or the last word of it would count.
            name = rng.choice(names)
            again = cbor2.dumps(name) + cbor2.dumps(plain[name], canonical=True)
            return bytes([data[0] + 1]) + data[1:] + again if data[0] & 31 < 23 else data
        case _:
            whole = {n: float(v) if type(v) is int and v < 2**53 else v for n, v in plain.items()}
            return cbor2.dumps(whole, canonical=True)


def _other_values(rng, data, spares):
    """Another value somewhere, in the one encoding: what only a later check can refuse."""
    plain = _read(data)
    if plain is None:
        return _any_bytes(rng, data, spares)
    return cbor2.dumps(_changed(rng, plain, spares), canonical=True)


def _changed(rng, value, spares):
    match value:
        case dict() if value:
            name = rng.choice(list(value))
            kind = rng.randrange(12)
            if kind == 0:
                return {other: value[other] for other in value if other != name}
            if kind == 1:
                return value | {f"{name}x": value[name]}
            return value | {name: _changed(rng, value[name], spares)}
        case list() if value:
            at, kind = rng.randrange(len(value)), rng.randrange(6)
            if kind == 0:
                return value[:at] + value[at + 1 :]
            if kind == 1:
                return [*value, value[at]]
            if kind == 2:
                return rng.sample(value, len(value))
            return [*value[:at], _changed(rng, value[at], spares), *value[at + 1 :]]
        case bytes() if value[:1] and value[0] >> 5 == _MAP and rng.random() < 0.8:
            return change_record(rng, value, [value])
        case bytes():
            near = len(value) % WORD == 0 and rng.random() < 0.7
            return (change_words if near else _any_bytes)(rng, value, [value or b"\x00"])
        case bool():
            return not value
        case int():
            return rng.choice((value + 1, max(0, value - 1), -1 - value, 2**53, 2**64, 2**70, 0))
        case str():
            return rng.choice((value + "x", value[:-1], value.upper(), value + "\x00", "", "é"))
        case float():
            return rng.choice((value + 1.0, -value, float("inf"), float("nan"), 0.0, 1))
    return rng.choice((None, 0, b"", "", [], {}))
