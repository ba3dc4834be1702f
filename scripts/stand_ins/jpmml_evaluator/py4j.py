"""Stands in for the way to Java."""

Py4JBackend = object
