"""`make parity`: clipbench and LAION's CLIP_benchmark on the same checkpoints, images and prompts."""
