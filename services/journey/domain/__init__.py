"""The journey's pure heart: maps, placement on them, scores, and the rules that raise signals."""
