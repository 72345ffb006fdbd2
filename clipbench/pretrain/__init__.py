"""Pretraining: one loop (`loop.pretrain`), objectives and their learners, towers, and training pairs.

A run's folder is a model: `clipbench eval --model runs/digits` reads its `card.yaml`.
"""
