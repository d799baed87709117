"""NATS with JetStream for one machine: writes its configuration and becomes the server."""
