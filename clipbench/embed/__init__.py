"""Embedding collections: images and captions of any number, to files of rows that other programs read.

`collection` says what a source is and in which parts it is read, `reading` reads one part, `output` is the folder that
is written, `run` makes the rows of parts, and `job` is the whole of it.
"""
