"""Where chat templates run: they are programs, and may take only so much."""
