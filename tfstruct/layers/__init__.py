"""Keras 3 layers that own every weight."""
