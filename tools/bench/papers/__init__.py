"""The tables of two papers on public data, and a reference that trains in one place."""
