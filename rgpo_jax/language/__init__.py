"""Language models: decoders as pure functions, their samples, and the log-probabilities of them."""
