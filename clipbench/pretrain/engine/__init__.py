"""How a step is computed: gradients of whole batches, optimisers, averages, processes, compilation, signals.

May import `data`, `objectives` and everything below `pretrain`.
"""
