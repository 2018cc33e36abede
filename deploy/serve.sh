#!/usr/bin/env bash
# A Prefect server, its work pool, the project's deployments and process workers on this machine, until this is ended.
#
#   deploy/serve.sh [--postgres] [--port 4200] [--workers 2] [--home DIR]
#
# --postgres  keep the server's database in PostgreSQL (Debian's package `postgresql`) rather than SQLite
# --home      where the databases and logs lie; ~/.local/state/nphm/service by default
#
# NPHM_WORKSPACE and NPHM_INBOX become the workspace of every run and the folder or bucket that is watched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

port=4200 workers=2 postgres="" home="${XDG_STATE_HOME:-$HOME/.local/state}/nphm/service"
while [ $# -gt 0 ]; do
  case "$1" in
    --postgres) postgres=yes ;;
    --port) port="$2"; shift ;;
    --workers) workers="$2"; shift ;;
    --home) home="$2"; shift ;;
    *) echo "serve.sh: unknown option $1; see its first lines" >&2; exit 2 ;;
  esac
  shift
done

prefect="$PWD/.venv/bin/prefect"
[ -x "$prefect" ] || prefect="$(command -v prefect)" || { echo "serve.sh: prefect is not installed; run 'make setup'" >&2; exit 1; }
mkdir -p "$home"
export PREFECT_HOME="$home/prefect" PREFECT_API_URL="http://127.0.0.1:$port/api" PREFECT_SERVER_ANALYTICS_ENABLED=false
# A run whose process was killed gives its place to the next one after this many seconds, rather than after five minutes.
export PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION=60
# Task runs are recorded many at once; one by one, as is the default, takes 20 ms of the server for each.
export PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=200 PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE=200
export PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL=1

server="" children=()
alive() { kill -0 "$@" 2>/dev/null; }
# The workers first, while there is a server to take leave of; one that does not end in ten seconds is killed.
stop() {
  trap - EXIT INT TERM
  for child in ${children[@]+"${children[@]}"} $server; do
    kill "$child" 2>/dev/null || continue
    for _ in $(seq 50); do alive "$child" && sleep 0.2 || break; done
    kill -9 "$child" 2>/dev/null || true
  done
  [ -z "$postgres" ] || as_postgres "$bin/pg_ctl" -D "$data" -m fast stop >/dev/null || true
}
trap stop EXIT
trap 'exit 0' INT TERM

answers() {
  "$(dirname "$prefect")/python" -c "import urllib.request as u; u.urlopen('$PREFECT_API_URL/health', timeout=5)" 2>/dev/null
}

# PostgreSQL refuses to run as root.
as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

if [ -n "$postgres" ]; then
  bin="$(dirname "$(readlink -f "$(command -v postgres || ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null | tail -1)")")" || true
  [ -x "$bin/initdb" ] || { echo "serve.sh: no PostgreSQL found; install it: apt-get install postgresql" >&2; exit 1; }
  data="$home/postgres" dbport=$((port + 1))
  if [ ! -e "$data/PG_VERSION" ]; then
    mkdir -p "$data"
    [ "$(id -u)" != 0 ] || chown postgres "$data"
    as_postgres "$bin/initdb" -D "$data" --auth=trust --username=prefect --encoding=UTF8 >"$home/initdb.log"
  fi
  as_postgres "$bin/pg_ctl" -D "$data" -w -l "$data/server.log" \
    -o "-c listen_addresses=127.0.0.1 -c port=$dbport -c unix_socket_directories='' -c max_connections=200" start >/dev/null
  as_postgres "$bin/psql" -h 127.0.0.1 -p "$dbport" -U prefect -d postgres -tAc "select 1 from pg_database where datname = 'prefect'" |
    grep -q 1 || as_postgres "$bin/createdb" -h 127.0.0.1 -p "$dbport" -U prefect prefect
  export PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect@127.0.0.1:$dbport/prefect"
fi

"$prefect" server start --host 127.0.0.1 --port "$port" >"$home/server.log" 2>&1 &
server=$!
for _ in $(seq 600); do
  answers && break
  alive "$server" || { tail -3 "$home/server.log" >&2; echo "serve.sh: the server ended; see $home/server.log" >&2; exit 1; }
  sleep 0.2
done

"$prefect" work-pool inspect nphm >/dev/null 2>&1 || "$prefect" work-pool create nphm --type process >/dev/null
"$prefect" --no-prompt deploy --all >"$home/deploy.log" 2>&1 || { tail -5 "$home/deploy.log" >&2; exit 1; }
for number in $(seq "$workers"); do
  "$prefect" worker start --pool nphm --name "$(hostname)-$number" >"$home/worker-$number.log" 2>&1 &
  children+=($!)
done
echo "serving: $PREFECT_API_URL, $workers workers of pool nphm; logs in $home"
wait -n "$server" "${children[@]}"
echo "serve.sh: the server or a worker ended; see the logs in $home" >&2
exit 1
