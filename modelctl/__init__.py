"""Administer a fleet of LLM models kept as rows in a database."""
