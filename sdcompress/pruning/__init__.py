"""What can be taken out of a component: whole parts on specs alone, and which heads and channels matter least."""
