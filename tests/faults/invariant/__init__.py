"""Bounded concurrency under seeded schedules of faults, checked from what the commands themselves recorded."""
