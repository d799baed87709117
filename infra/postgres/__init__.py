"""PostgreSQL for one machine: finds it, initialises a data directory and becomes the server."""
