"""Drawings of journeys: one file each, with nothing from elsewhere in it."""
