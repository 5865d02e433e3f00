"""Packing of fields into plaintext coefficients and back.

Rules (SPEC 5.1): `digits` consecutive fields are the digits of one coefficient in radix
`base`, lowest first. The radix exceeds what a field of a full sum can reach, so
coefficients add without carries and a sum unpacks exactly. Unused places hold zero, and
stay zero in every honest sum.
"""

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import EncodingRangeError
from vitalring.protocol.bfv import BfvParams


def pack_fields(fields: NDArray[np.uint64], params: BfvParams) -> NDArray[np.uint64]:
    """Pack one update's fields (fields,) into coefficients (ciphertexts, degree).

    Raises EncodingRangeError for another number of fields or a field above field_max.
    """
    if fields.shape != (params.fields,) or fields.dtype != np.uint64:
        raise EncodingRangeError(
            f"{params.fields} fields of 64 bits pack, not {fields.shape} of {fields.dtype}"
        )
    if int(fields.max()) > params.field_max:
        raise EncodingRangeError(f"field {int(fields.max())} exceeds {params.field_max}")
    digits = np.zeros(_places(params), dtype=np.uint64)
    digits[: params.fields] = fields
    powers = np.array([params.base**i for i in range(params.digits)], dtype=np.uint64)
    # Below base**digits < 2**60: nothing overflows.
    coefficients: NDArray[np.uint64] = (digits.reshape(-1, params.digits) * powers).sum(
        axis=1, dtype=np.uint64
    )
    # Reserved coefficients stay zero.
    packed = np.zeros((params.ciphertexts, params.degree), dtype=np.uint64)
    packed[:, : params.used] = coefficients.reshape(params.ciphertexts, params.used)
    return packed


def unpack_fields(
    coefficients: NDArray[np.uint64], params: BfvParams, count: int
) -> NDArray[np.uint64]:
    """Unpack a sum of `count` updates from coefficients (ciphertexts, degree) to (fields,).

    Raises EncodingRangeError if the shape is wrong, a digit is above what `count` updates
    can reach, or an unused place is not zero.
    """
    # 1. The shape, and as many updates as the radix has room for.
    if coefficients.shape != (params.ciphertexts, params.degree):
        raise EncodingRangeError(
            f"coefficients of shape {coefficients.shape}, not {(params.ciphertexts, params.degree)}"
        )
    if not 1 <= count <= params.additions:
        raise EncodingRangeError(f"a sum of {count} updates, room is for {params.additions}")
    if coefficients[:, params.used :].any():
        raise EncodingRangeError("a reserved coefficient of the sum is not zero")
    rest = coefficients[:, : params.used].reshape(-1).astype(np.uint64)
    digits = np.empty((rest.size, params.digits), dtype=np.uint64)
    base = np.uint64(params.base)
    for place in range(params.digits):
        rest, digits[:, place] = np.divmod(rest, base)
    # 2. Every digit within reach, and nothing above the highest one.
    if rest.any():
        raise EncodingRangeError("a coefficient is not below the plain modulus")
    largest = int(digits.max())
    if largest > count * params.field_max:
        raise EncodingRangeError(f"a field of {largest} is too large for {count} updates")
    # 3. Unused places are zero.
    places = digits.reshape(-1)
    if places[params.fields :].any():
        raise EncodingRangeError("an unused place of the sum is not zero")
    return places[: params.fields]


def _places(params: BfvParams) -> int:
    return params.ciphertexts * params.used * params.digits
