"""Bounded concurrency under seeded schedules of faults, judged by what the commands themselves wrote down."""
