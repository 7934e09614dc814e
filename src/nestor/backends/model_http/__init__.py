"""What clients of model servers share: connections, one POST, a stream of events."""
