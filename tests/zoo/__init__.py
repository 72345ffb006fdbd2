"""Every architecture of open_clip, made small, through it and through clipbench: `make zoo`, `docs/models.md`."""
