"""What all parties agree on: bytes and mathematics.

Nothing here does I/O, reads a clock or keeps state. Clauses named in the
modules are those of `SPEC.md` in this folder.
"""
