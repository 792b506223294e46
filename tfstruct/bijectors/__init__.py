"""Bijectors of TensorFlow Probability's kind."""
