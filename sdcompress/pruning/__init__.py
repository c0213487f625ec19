"""What can be removed from a component: whole parts, heads and channels, and single weights."""
