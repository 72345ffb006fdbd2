"""From a split and a model to rows on disk: an image is decoded once, a row kept under a key of all that decides it.

`encoder` is a model as protocols see it; `images` encodes, `feature_store` keeps, `runtime` says how a tower runs.
May import models, data, cards, metrics and utils; knows no protocol.
"""
