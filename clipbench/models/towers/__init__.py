"""Towers as torch modules with their configs, and adapters of two towers; they import weights, never a family."""
