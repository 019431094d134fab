"""Losses as functions of tensors, and their one composition in `vaegan.py`."""
