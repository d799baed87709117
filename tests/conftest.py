"""What holds for all tests."""

from hypothesis import settings

# The same examples each time: what chance finds today is gone tomorrow. `--hypothesis-profile=default` looks further.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
