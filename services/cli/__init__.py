"""The `recorrido` command: a client like any other, for people."""
