"""What the services run on: the embedded event store, NATS, Triton, PostgreSQL and the local supervisor."""
