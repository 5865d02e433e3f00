"""Runs on a hospital's server: sealed updates in, an encrypted sum and a log out. Holds no key."""
