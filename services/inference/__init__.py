"""What does it mean? The customer's words become structured, quantified, versioned analysis."""
