"""Actions as they are decided about: pure functions and what they need."""
