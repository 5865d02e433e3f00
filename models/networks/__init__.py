"""One file for each architecture; `vitalring.models.registry` lists them."""
