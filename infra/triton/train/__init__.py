"""Training of the `feedback` model: data, linear heads, calibration, export, evaluation."""
