"""Recipes that chain supervised fine-tuning, rejection sampling and DPO."""

__version__ = "0.1.0"
