"""What Nestor says about itself: trace ids, metrics, logs, and events for learning."""
