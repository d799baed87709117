"""What changes actions: commands of people, signals, and the clock."""
