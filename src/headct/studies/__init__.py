"""Whole ways put together from the rooms; no algorithm lives here."""
