"""Records: what one is (`record`), where it lies (`store`), whether it may stand (`eligibility`), and how two differ.

May import catalog and everything below; no report, and no torch.
"""
