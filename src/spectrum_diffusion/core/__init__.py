"""Schedules, forecasts, histories and runs. Knows neither models nor diffusers."""
