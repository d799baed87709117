"""Brings in what happened elsewhere, or in a made-up company."""
