"""What is kept on disk: run folders, checkpoints, the weights of another run."""
