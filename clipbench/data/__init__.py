"""Data: a card's split as a stream of samples, wherever it lies.

`open` finds the split, `split` says what one is, `paths` where copies are; `layouts` holds a file a layout, and `pairs`
what is trained on. Imports cards, metrics, utils and errors.
"""
