"""Scores of reward models and judges, and how several become one."""
