"""Reports about models, targets and backends."""
