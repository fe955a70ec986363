"""Layers of tradebench's own, which techniques put in the place of a model's: they need torch."""
