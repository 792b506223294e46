"""TensorFlow Probability distributions, stateless functions of tensors."""
