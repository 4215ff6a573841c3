"""The tables as the code of today sees them; ``migrations`` tells how they came to be."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

#: NULL for None, not the JSON text "null".
_Json = sa.JSON(none_as_null=True)

jobs = sa.Table(
    "jobs",
    metadata,
    #: Order of insertion; the second key of every "oldest first".
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.BigInteger, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("dialect", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("request", _Json, nullable=False),
    sa.Column("echo", _Json, nullable=False),
    sa.Column("outputs", _Json, nullable=False),
    sa.Column("warnings", _Json, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("webhook", sa.Text),
    sa.Column("webhook_state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("result", _Json),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("temporary", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("jobs_by_state", "state", "created_at", "number"),
    sa.Index("jobs_by_owner", "owner", "state"),
    sa.Index("jobs_by_webhook_state", "webhook_state", "created_at", "number"),
    sa.Index("jobs_by_temporary", "temporary", "state", "created_at", "number"),
    sqlite_autoincrement=True,
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    #: What may be shown of the key.
    sa.Column("prefix", sa.Text, nullable=False),
    #: SHA-256 of the whole key, in hexadecimal: 32 random bytes need no slow hash.
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", _Json, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)
