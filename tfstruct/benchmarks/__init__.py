"""What things cost: ways of doing the same work timed in turn, beside the least that it could take."""
