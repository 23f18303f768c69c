"""Shows what a trained policy does."""
