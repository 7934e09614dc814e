"""The task engine on DBOS: durable steps in the same database as our tables."""
