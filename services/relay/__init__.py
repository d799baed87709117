"""The one process that is not one of the four services: it carries events from the store to the bus."""
