"""clipbench measured against a limit or a peer, always as a ratio within one run: what a file's `measure` finds, its
`view` lays out for the terminal."""
