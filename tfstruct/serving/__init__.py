"""Exporting models and using what was exported."""
