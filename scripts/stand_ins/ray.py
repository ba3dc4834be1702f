"""Stands in for Ray, which is imported before the import that mpserve refuses."""

serve = None
