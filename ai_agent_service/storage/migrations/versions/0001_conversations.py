"""Sessions, their trees of messages, runs, summaries, processes and secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

HASH = sa.LargeBinary(16)
TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "sessions",
        sa.Column("key", HASH, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.Column("head", HASH),
        sa.Column("summaries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_process", sa.Text),
        sa.Column("lease_until", TIMESTAMP),
        sa.PrimaryKeyConstraint("key", name="pk_sessions"),
    )
    op.create_index(
        "ix_sessions_newest", "sessions", ["tenant", "user_id", "agent_id", "updated_at"]
    )
    leased = sa.text("lease_process IS NOT NULL")
    op.create_index(
        "ix_sessions_leased",
        "sessions",
        ["lease_process"],
        postgresql_where=leased,
        sqlite_where=leased,
    )
    op.create_index("ix_sessions_activity", "sessions", ["agent_id", "updated_at"])
    op.create_table(
        "nodes",
        sa.Column("path", HASH, nullable=False),
        sa.Column("session_key", HASH, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("parent", HASH, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("steps", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("usage", sa.Text),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_nodes"),
        sa.ForeignKeyConstraint(
            ["session_key"],
            ["sessions.key"],
            name="fk_nodes_session_key_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_nodes_session", "nodes", ["session_key", "depth"])
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("session_key", HASH, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("question", HASH, nullable=False),
        sa.Column("answer", HASH),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("process_id", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("finish_reason", sa.String(32)),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("ended_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        sa.ForeignKeyConstraint(
            ["session_key"],
            ["sessions.key"],
            name="fk_runs_session_key_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_runs_session", "runs", ["session_key", "message_id"])
    running = sa.text("status = 'running'")
    op.create_index(
        "ix_runs_running", "runs", ["process_id"], postgresql_where=running, sqlite_where=running
    )
    op.create_table(
        "summaries",
        sa.Column("session_key", HASH, nullable=False),
        sa.Column("covers", HASH, nullable=False),
        sa.Column("settings", HASH, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("session_key", "covers", "settings", name="pk_summaries"),
        sa.ForeignKeyConstraint(
            ["session_key"],
            ["sessions.key"],
            name="fk_summaries_session_key_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "processes",
        sa.Column("process_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("seen_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("process_id", name="pk_processes"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
