"""Trains every agent on every environment with every choice of settings."""
