"""Kinds of stages, one file a kind."""
