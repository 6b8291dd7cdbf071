"""The database: engines, tables, migrations, and what is encrypted in it."""
