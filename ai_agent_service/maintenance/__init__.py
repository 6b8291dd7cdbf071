"""What operators do to the database: backup, restore, failover, re-encryption."""
