#!/bin/sh
# What the profile `prod` needs, before anything else is started: checks the service's own configuration, and tells all that is missing beside it.
set -u
faults=0
fault() { echo "$1"; faults=$((faults + 1)); }

ai-agent-service check || faults=$((faults + 1))

for name in POSTGRES_PASSWORD POSTGRES_ADMIN_PASSWORD REPLICATION_PASSWORD; do
    eval "value=\${$name:-}"
    case $value in
        '') fault "$name is not set: write it to docker/.env, made by chance with: openssl rand -hex 32" ;;
        *[!A-Za-z0-9._~-]*) fault "$name has characters that addresses cannot have as they are: make one with: openssl rand -hex 32" ;;
    esac
done
for file in fullchain.pem privkey.pem; do
    [ -e "/certificates/$file" ] || fault "certificates/$file is not there: nginx needs it; docker/self-signed makes one to try with"
done
[ "$faults" = 0 ] || exit 2
