"""The training core: state, step, loop, replicas, checkpoints."""
