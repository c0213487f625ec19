"""What the original pipeline is run on: settings, prompts, pictures."""
