"""Readers of the formats that files come in."""
