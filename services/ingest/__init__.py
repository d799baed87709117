"""What happened? The front door: validation, idempotency, and the customer's history."""
