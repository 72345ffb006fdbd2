"""Pairs of images and texts to train on: task cards' splits, tables of files, and tars, local or on servers.

Imports the rest of data.
"""
