"""Ways of measuring, one module each; a task's id ends in its protocol's. `base` is the contract, `registry` finds them.

May import encoding, solvers, data, metrics, cards and utils. Modules that begin with `_` are what several share.
"""
