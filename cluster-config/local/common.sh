# What `up`, `down` and `status` share. Read by bash, not run.
# shellcheck shell=bash disable=SC2034

folder=./cluster
port=8080
nats_port=4222
# Set by `load_settings`.
nats_password=
nats_operator_password=
nats_route_password=
# A little longer than a node may take to drain.
drain_seconds=75
ready_seconds=60

say() {
    printf '%s\n' "$*"
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Prints the head of a script.
usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$1" >&2
    exit 2
}

load_settings() {
    # shellcheck source=/dev/null
    . "$folder/settings"
}

# For a command that works on this cluster, when it is not in the usual place.
other_folder() {
    if [ "$folder" != "$PWD/cluster" ]; then
        printf ' --folder %q' "$folder"
    fi
}

node_port() {
    echo $((port + ${1#n}))
}

balancer_metrics_port() {
    echo $((port + 4))
}

nats_client_port() {
    echo $((nats_port + $1 - 1))
}

nats_route_port() {
    echo $((nats_port + 10 + $1 - 1))
}

nats_monitor_port() {
    echo $((nats_port + 20 + $1 - 1))
}

nats_urls() {
    echo "nats://127.0.0.1:$(nats_client_port 1),nats://127.0.0.1:$(nats_client_port 2),nats://127.0.0.1:$(nats_client_port 3)"
}

# Where the servers say how they flush.
nats_monitors() {
    echo "http://127.0.0.1:$(nats_monitor_port 1),http://127.0.0.1:$(nats_monitor_port 2),http://127.0.0.1:$(nats_monitor_port 3)"
}

# Whether a GET of a path is answered with 200 within a second or two.
answers() {
    local port=$1 path=$2 line
    {
        exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
        printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$path" >&3
        read -r -t 2 line <&3 || line=
        exec 3>&- 3<&-
    } 2>/dev/null
    case $line in
        *" 200 "*) return 0 ;;
        *) return 1 ;;
    esac
}

# Fails when somebody listens on one of these ports.
free() {
    local port
    for port in "$@"; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port is taken by something else: choose others with --port and --nats-port, and a new --folder"
        fi
    done
}

# When a process began, in the system's own words, which together with its id no other process has; nothing when it has ended.
began() {
    local stat
    if [ ! -d /proc/self ]; then
        ps -o lstart= -p "$1" 2>/dev/null || true
        return
    fi
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The name in parentheses may hold anything; what follows are the state and, 19 fields later, the time.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    case $1 in
        Z | X) ;;
        *) echo "${20}" ;;
    esac
}

# Whether the process that was started under this name still runs. An id that another process has by now does not count.
runs() {
    local pid before now
    pid=$(cat "$folder/$1.pid" 2>/dev/null) || return 1
    before=$(cat "$folder/$1.began" 2>/dev/null) || return 1
    now=$(began "$pid")
    [ -n "$now" ] && [ "$now" = "$before" ]
}

# Starts a program under a name; it goes on when the terminal is closed.
start() {
    local name=$1
    shift
    nohup "$@" >>"$folder/$name.log" 2>&1 </dev/null &
    began $! >"$folder/$name.began"
    echo $! >"$folder/$name.pid"
    say "$name is started (process $!, $folder/$name.log)"
}

# Waits until the process of this name answers.
await() {
    local name=$1 port=$2 path=$3 deadline=$((SECONDS + ready_seconds))
    until answers "$port" "$path"; do
        if ! runs "$name"; then
            tail -n 5 "$folder/$name.log" >&2
            fail "$name has ended; its last lines are above"
        fi
        if [ $SECONDS -ge $deadline ]; then
            tail -n 5 "$folder/$name.log" >&2
            fail "$name is not ready after $ready_seconds seconds; its last lines are above, and \`down\` ends what runs"
        fi
        sleep 0.1
    done
}

# Asks processes to end, waits for so many seconds in all, and ends what is left without asking.
end() {
    local name running deadline=$((SECONDS + $1))
    shift
    for name in "$@"; do
        if runs "$name"; then
            say "$name is told to end"
            kill -TERM "$(cat "$folder/$name.pid")" 2>/dev/null || true
        fi
    done
    while :; do
        running=
        for name in "$@"; do
            if runs "$name"; then
                running="$running $name"
            else
                rm -f "$folder/$name.pid" "$folder/$name.began"
            fi
        done
        if [ -z "$running" ]; then
            return
        fi
        if [ $SECONDS -ge $deadline ]; then
            break
        fi
        sleep 0.1
    done
    for name in $running; do
        say "$name did not end in time and is killed"
        kill -KILL "$(cat "$folder/$name.pid")" 2>/dev/null || true
        rm -f "$folder/$name.pid" "$folder/$name.began"
    done
}
