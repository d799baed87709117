"""The local supervisor: starts, watches and stops every part on one machine, without a daemon or a container."""
