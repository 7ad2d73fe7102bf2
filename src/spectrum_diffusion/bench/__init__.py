"""Evaluation, metrics, prompts and costs, built on the library. Nothing of the library imports it."""
