"""Runs on the device: sensor windows in, sealed updates out. Never imports TensorFlow."""
