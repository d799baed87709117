"""NVIDIA Triton without Docker: its installation, its command line, the taxonomy and the models that it serves."""
