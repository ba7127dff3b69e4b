"""Measurements: `python -m tools.bench` runs them all, `python -m tools.bench cron` one group."""
