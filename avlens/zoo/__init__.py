"""The embedded models: weights, and what small models are made of."""
