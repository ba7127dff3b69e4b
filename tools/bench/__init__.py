"""Measurements: `python -m tools.bench` runs all, `python -m tools.bench cron` one group of them.

`python -m tools.bench --against FOLDER` compares this version with the one of another checkout.
"""
