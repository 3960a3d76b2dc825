"""Replications: one folder for each experiment, holding its configuration and its claim."""
