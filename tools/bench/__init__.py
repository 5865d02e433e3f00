"""Measurements. Whatever is measured runs in a process of its own, so nothing else is counted."""
