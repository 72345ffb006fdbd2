"""A run's folder and what is shown of it: checkpoints, metrics, curves, the live lines.

May import `data` and `engine` for what a checkpoint holds, and everything below `pretrain`.
"""
