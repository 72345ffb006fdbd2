"""The cards: what a user writes in YAML about a model, a data set or a pretraining run.

`base` is what all are made of, `strict_yaml` reads them, `model`, `task` and `recipe` (with `pairs`) say what they
hold, `overrides` changes recipes by the names of their fields, `entry` is a card with its file. Imports `utils` and
`errors` alone, and no torch.
"""
