"""Layouts of local copies: one file each, found by its name and asked by `clipbench.data.open`.

A file has a `LAYOUT` (see `base`); files that begin with `_` are helpers. Imports the rest of data but for what opens
splits (`open`, `huggingface`) and `pairs`.
"""
