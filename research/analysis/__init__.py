"""Counts models and reads result rows: statistics, tables and what they rest on."""
