"""Diseases and traps of virtual patients, one kind in a file."""
