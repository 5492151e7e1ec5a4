"""Formats of demonstrations: one file a format, each with `read_*` and `write_*` between a path and `Episodes`."""
