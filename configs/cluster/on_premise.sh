#!/usr/bin/env bash
# A cluster of machines that are there already: `on_premise.sh head` on one of them, then `on_premise.sh worker <its address>` on
# each of the others. All of them have the same Python, Ray and pfray, the same token file (`ray get-auth-token --generate` and
# `chmod 600 ~/.ray/auth_token` on one, then copied with its mode), and one folder for runs and data at the same path. They listen
# on all interfaces: nobody else should reach them. The dashboard and the job server are reached on the head, or through
# `ssh -L 8265:127.0.0.1:8265`. RAY_PORT (6379) is the head's port; more arguments are handed on to `ray start`.
set -euo pipefail
export RAY_AUTH_MODE=token
port="${RAY_PORT:-6379}"
usage="usage: $0 head | worker <address of the head>"
role="${1:?$usage}"
shift
case "$role" in
    head) exec ray start --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port=8265 "$@" ;;
    worker) address="${1:?$usage}"; shift; exec ray start --address="$address:$port" "$@" ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
