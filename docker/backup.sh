#!/usr/bin/env bash
# Dumps the database that PG* name every BACKUP_INTERVAL_HOURS and deletes dumps that are older than BACKUP_KEEP_DAYS.
#
#     backup.sh             goes on until it is stopped
#     backup.sh once        one dump now
#     backup.sh is-fresh    ends with 0 if the newest dump is not older than two intervals
set -euo pipefail
umask 077
cd "${BACKUP_DIR:-/var/lib/postgresql/data}"
hours=${BACKUP_INTERVAL_HOURS:-24}
days=${BACKUP_KEEP_DAYS:-14}
[[ $hours =~ ^[1-9][0-9]{0,3}$ && $days =~ ^[1-9][0-9]{0,3}$ ]] || { echo "BACKUP_INTERVAL_HOURS and BACKUP_KEEP_DAYS are whole numbers from 1 on" >&2; exit 2; }
trap 'exit 0' TERM INT

# Makes FILE from what it prints to standard output; FILE is there only if it is whole. Older ones go only after that.
dump() {
    local file part
    file=$PGDATABASE-$(date --utc +%Y-%m-%dT%H%M%SZ).sql.gz
    part=.$file.part
    rm -f .*.part
    if pg_dump --clean --if-exists --no-owner --no-privileges | gzip > "$part" \
        && gunzip --stdout "$part" | tail --lines=20 | grep --quiet "PostgreSQL database dump complete"; then
        mv "$part" "$file"
        echo "backup: $file, $(stat --format=%s "$file") bytes"
        find . -maxdepth 1 -name '*.sql.gz' -mmin +$((days * 24 * 60)) -print -delete
    else
        rm -f "$part"
        echo "backup: failed; the next one is tried in ten minutes" >&2
        return 1
    fi
}

case ${1:-} in
    once) dump ;;
    is-fresh) [ -n "$(find . -maxdepth 1 -name '*.sql.gz' -mmin -$((hours * 120)) -print -quit)" ] ;;
    "")
        while true; do
            if dump; then wait=$((hours * 3600)); else wait=600; fi
            sleep "$wait" & # in the background, for the shell hears no signal while it waits for a command
            wait $!
        done ;;
    *) echo "backup.sh [once | is-fresh]" >&2; exit 2 ;;
esac
