"""Patients who do not exist: heads with known truth."""
