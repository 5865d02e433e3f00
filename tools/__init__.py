"""The `vitalring` command. Nothing imports this package."""
