"""What a run is to do: its options, read and checked before JAX is loaded."""
