"""Architectures, their conversion to TFLite, and the artefacts that were built from them."""
