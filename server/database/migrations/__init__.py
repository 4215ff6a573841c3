"""How the schema came to be; alembic runs these files from this folder."""
