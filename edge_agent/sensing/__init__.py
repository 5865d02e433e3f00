"""Live sensors on a device: from samples as they arrive to labelled windows on its disk.

The path of a sample: a source (`replay`, `lines`, `feeder`) reads it, `cutting` cuts windows,
`rules` and `labels` say what a window shows, `buffer` keeps both in one transaction with the
place where the source goes on, and `records` hands a round the labelled ones. `runner` drives it.
"""
