"""Models: the contract (`adapter`), one module a family, found by its name (`families`), and their saliency maps.

The modules of towers are in `towers/`, weights files in `weights/`. Imports run one way: families > towers, weights >
adapter; from outside come cards, data, metrics and utils. Training and evaluation share the towers.
"""
