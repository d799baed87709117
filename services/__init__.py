"""Recorrido's services: ingest, inference, journey, actions, the relay and the command line."""
