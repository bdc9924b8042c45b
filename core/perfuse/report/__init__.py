"""What is told about models, targets and backends."""
