"""Runs at the key holder: an encrypted sum in, a new model out."""
