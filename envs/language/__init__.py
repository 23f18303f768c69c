"""Worlds in which language models are aligned: exact ones, and those of real models."""
