"""clipbench measured against a limit or a peer, always as a ratio within one run."""
