"""Pure functions of arrays: metrics, their intervals, and paired tests. No files, no cards, no models.

May import `utils` and `errors`; torch only in `similarity`, inside functions or for types.
"""
