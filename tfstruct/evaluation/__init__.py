"""What a trained run is worth: held-out likelihoods, their plausibility, and pictures."""
