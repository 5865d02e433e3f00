"""Linkable ring signatures of logarithmic size: suite 2, beside LSAG (`protocol.lsag`)."""
