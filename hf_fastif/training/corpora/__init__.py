"""Data sets and encoders that need no Hub."""
