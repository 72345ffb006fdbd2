"""What runs are trained for: an objective is one file, with its settings, its loss and what it learns (see `base`).

May import towers, a batch's type and the cards; nothing else of `pretrain`. No torch before a learner is made.
"""
