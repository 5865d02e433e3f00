"""Data sets in the project's folder format: from published files, pooled tables, real fleets.

Nothing here uses the network: the files are brought by the user, and every folder that is made
says in its PROVENANCE.txt which files those were, and under which licence they are published.
"""
