"""Scheduling: each tick on exactly one host."""
