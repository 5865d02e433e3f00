"""Run by an interpreter with vitalring[models]: records whose gradient looks like a given one.

Geiping et al., "Inverting Gradients", NeurIPS 2020 (arXiv:2003.14053): the records are moved until
their gradient has the direction of the one that was seen, by Adam on the signs, with a prior for
small total variation. Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019 (arXiv:1906.08935)
had the idea, with the distance in place of the angle. The labels are given. The network is the
device's without its rounding to int8, which has no slope to follow.
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

_NO_CLIP = 1e20


def invert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the records found into the file `found`, (cases, records, *input) by group.

    `arrays` holds for each group `weights` (c, d), `gradients` (c, d), `labels` (c, m) and
    `starts` (c, m, *input), named with the group before; `mean` and `spread` are those of an
    input's columns. Returns how alike gradients became, and the shape of the first kernel if the
    network begins with a dense layer that has a bias.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    from vitalring.models.registry import NETWORKS  # noqa: PLC0415

    with np.load(request["arrays"]) as arrays:
        given = dict(arrays)
    # Who registers a network need not offer a float form; those that are attacked have one.
    network: Any = NETWORKS[request["model"]](quantised=False)  # type: ignore[call-arg]
    shape, classes = tuple(request["input_shape"]), request["classes"]
    if network.sized is not None:
        network = replace(network, layer=network.sized(shape, classes))
    found, alike = {}, {}
    for group in request["groups"]:
        weights, gradients, labels, starts = (
            given[f"{group} {part}"] for part in ("weights", "gradients", "labels", "starts")
        )
        scaled = (starts - given["mean"]) / given["spread"]
        y = np.eye(classes)[labels]
        rows, likeness = _descend(network, weights, gradients, y, scaled, given, request)
        found[group], alike[group] = rows, likeness.tolist()
    np.savez(request["found"], **found)
    first = [block.shape for block in network.layer.blocks[:2]]
    dense = len(shape) == 1 and first[1] == first[0][-1:]
    answer = {"alike": alike, "first_dense": list(first[0]) if dense else []}
    return answer | {"version": tf.__version__}


def _descend(
    network: Any,  # noqa: ANN401
    weights: Any,  # noqa: ANN401
    gradients: Any,  # noqa: ANN401
    one_hot: Any,  # noqa: ANN401
    start: Any,  # noqa: ANN401
    scale: dict[str, Any],
    request: dict[str, Any],
) -> tuple[Any, Any]:
    """Return records (c, m, *input), and the cosines (c,) of their gradients with the given ones.

    All cases go down together, each on its own: the sum of their losses has no mixed terms.
    """
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    from vitalring.models.network import clipped_gradient_sum  # noqa: PLC0415

    mean, spread = (tf.constant(scale[part], tf.float32) for part in ("mean", "spread"))
    w, y = tf.constant(weights, tf.float32), tf.constant(one_hot, tf.float32)
    goals = tf.math.l2_normalize(tf.constant(gradients, tf.float32), axis=1)
    records, ones = one_hot.shape[1], tf.ones(one_hot.shape[1])
    no_clip, time = tf.constant(_NO_CLIP, tf.float32), start.ndim == 4

    def cosine(case: Any) -> Any:  # noqa: ANN401
        u, w_of, y_of, goal = case
        x = tf.reshape(mean + spread * u, (records, *network.layer.in_shape))
        mine, _, _ = clipped_gradient_sum(network, w_of, x, y_of, ones, no_clip)
        return tf.tensordot(mine, goal, 1) / (tf.norm(mine) + 1e-20)

    @tf.function  # type: ignore[untyped-decorator] # TensorFlow carries no types
    def slope(u: Any) -> tuple[Any, Any]:  # noqa: ANN401
        with tf.GradientTape() as tape:
            tape.watch(u)
            cosines = tf.vectorized_map(cosine, (u, w, y, goals))
            loss = tf.reduce_sum(1.0 - cosines)
            if time:
                rough = tf.reduce_mean(tf.abs(u[:, :, 1:] - u[:, :, :-1]), axis=(1, 2, 3))
                loss += request["variation"] * tf.reduce_sum(rough)
        return tape.gradient(loss, u), cosines

    u = np.asarray(start, np.float32)
    best, most = u.copy(), np.full(len(u), -2.0)
    moment, square, decay = np.zeros_like(u), np.zeros_like(u), 0.9
    steps = request["iterations"]
    for step in range(1, steps + 1):
        rate = 0.1 * 0.1 ** sum(step > share * steps for share in (0.375, 0.625, 0.875))
        down, cosines = (each.numpy() for each in slope(tf.constant(u)))
        better = cosines > most
        best[better], most[better] = u[better], cosines[better]
        sign = np.sign(down)
        moment = decay * moment + (1 - decay) * sign
        square = 0.999 * square + 0.001 * sign * sign
        move = (moment / (1 - decay**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        u = np.clip(u - rate * move, -request["bound"], request["bound"]).astype(np.float32)
    return best * scale["spread"] + scale["mean"], most


if __name__ == "__main__":
    print(json.dumps(invert(json.loads(sys.argv[1]))))
