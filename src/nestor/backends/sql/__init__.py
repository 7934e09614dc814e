"""The stores in SQL: SQLite by default, PostgreSQL by changing one URL."""
