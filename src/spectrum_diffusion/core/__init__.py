"""Schedule, forecast, history and run: knows no model and no diffusers."""
