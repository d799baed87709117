"""What is asked of actions: lists and boards from a read model in PostgreSQL, single actions from their own stream."""
