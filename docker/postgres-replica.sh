#!/usr/bin/env bash
# A streaming replica of PRIMARY_HOST: copies the primary where there is no copy yet, and follows it. One that was promoted stays what it is.
set -euo pipefail
umask 077
: "${REPLICATION_PASSWORD:?}" "${PRIMARY_HOST:?}" "${PGDATA:?}"

export PGPASSFILE=/tmp/replication.pgpass
printf '*:*:*:replicator:%s\n' "$REPLICATION_PASSWORD" > "$PGPASSFILE"
primary="host=$PRIMARY_HOST user=replicator application_name=replica passfile=$PGPASSFILE"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # A copy that was cut off, and the slot of one that is gone, which would keep what the primary writes.
    rm -rf "$PGDATA.copy"
    psql --no-psqlrc --quiet "$primary replication=true" --command="DROP_REPLICATION_SLOT replica" 2> /dev/null || true
    pg_basebackup --dbname="$primary" --pgdata="$PGDATA.copy" --create-slot --slot=replica --wal-method=stream --checkpoint=fast
    touch "$PGDATA.copy/standby.signal"
    mv "$PGDATA.copy" "$PGDATA"
fi
exec postgres -c primary_conninfo="$primary" -c primary_slot_name=replica -c max_slot_wal_keep_size=4GB
