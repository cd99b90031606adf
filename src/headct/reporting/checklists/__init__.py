"""Reporting checklists of the field, filled in from a run's own record: CLAIM 2024, TRIPOD+AI, STARD-AI."""
