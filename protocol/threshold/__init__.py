"""Threshold BFV: the hospitals make one key together, and only together read a sum.

`params` sizes everything, `pieces` says who holds what, `joint_key` makes and joins the
key, `possession` proves that a part of it is known, `decryption` opens a sum (SPEC 5.11
to 5.21). No module here reads or writes files, knows the time or keeps state.
"""
