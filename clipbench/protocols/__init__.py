"""Ways of measuring, one module each: a task ends in its protocol's id. `base` is the contract, `registry` finds them.

May import encoding, solvers, data, metrics, cards and utils. Modules that begin with `_` are what several share.
"""
