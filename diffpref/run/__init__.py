"""What any long run needs: checkpoints, logs, trackers, and what it ran on."""
