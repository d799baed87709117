"""What holds for all tests."""

from hypothesis import settings

# The same examples each time: what was found by chance today would be gone tomorrow. `--hypothesis-profile=default` looks further.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
