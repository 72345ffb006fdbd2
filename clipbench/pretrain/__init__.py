"""Pretraining: one loop (`loop.pretrain`) for every objective, and studies that compare objectives (`study`).

A run's folder is a model: `clipbench eval --model runs/digits` reads its `card.yaml`. May import everything but
`report`, `bench` and `cli`.
"""
