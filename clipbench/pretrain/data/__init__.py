"""Training pairs: what a recipe's sources hold, in which order it comes, and how it is augmented into batches.

May import `objectives` (what these want of a batch) and everything below `pretrain`.
"""
