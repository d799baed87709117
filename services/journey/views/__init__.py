"""The journey's read models: one projection into PostgreSQL, and the questions that are asked of it."""
