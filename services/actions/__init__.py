"""What do we do about it, and did it help? Recoveries and improvements."""
