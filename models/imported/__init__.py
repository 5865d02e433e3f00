"""Networks that others made, as trainable ones: ONNX or Keras in, an artefact out.

A file is read into a list of `parts`, and `assemble` makes layers of vitalring.models.layers from
them, with the file's weights to start from. What has no such layer is refused by name: a network
that trains as something else than it was would be worse than none.
"""
