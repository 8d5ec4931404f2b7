"""Pictures of episodes, tasks and results."""
