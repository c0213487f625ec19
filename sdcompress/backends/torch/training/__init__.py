"""Training a component to give what another gives: data from trajectories, losses, weight averages, checkpoints."""
