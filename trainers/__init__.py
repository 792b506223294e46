"""absl binaries: thin wrappers around `tfstruct`."""
