"""`python -m clipbench`."""

from clipbench.cli import main

main()
