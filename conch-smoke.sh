#!/bin/sh
# shellcheck disable=SC2317  # functions that are called by name or by trap
# Checks that conch works with this etcd. Run it after a deploy, with CONCH_ENDPOINTS (and whatever else conch needs) set.
#
#   CONCH_ENDPOINTS=etcd1:2379,etcd2:2379 ./conch-smoke.sh
#
# CONCH=/path/to/conch runs that conch instead of the one on PATH.
#
# Prints one line per check, PASS, FAIL or SKIP, and exits with 1 if a check failed. It uses names of its own. Even if it
# is interrupted it leaves nothing behind but claims and results, which expire. If a conchd is alive, that conchd runs the
# schedule; otherwise the script starts one, under a prefix of its own.
set -u

conch=${CONCH:-conch}
name=smoke-$$-$(date +%s)
folder=$(mktemp -d) || exit 1
failed=0
children=

clean_up() {
  trap - EXIT
  trap '' HUP INT TERM
  for pid in $children; do
    kill "$pid" 2>/dev/null
  done
  for pid in $children; do
    wait "$pid" 2>/dev/null
  done
  "$conch" cron rm "$name" --quiet >/dev/null 2>&1
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

pass() { echo "PASS $1"; }

fail() {
  echo "FAIL $1"
  failed=1
  for log in "$folder"/*.err; do
    if [ -s "$log" ]; then
      tail -n 3 "$log" | sed 's/^/     /'
      : >"$log"
    fi
  done
}

# check WHAT WANTED-CODE COMMAND...: run COMMAND and compare its exit code
check() {
  what=$1 wanted=$2
  shift 2
  "$@" >"$folder/out" 2>"$folder/check.err"
  code=$?
  if [ "$code" = "$wanted" ]; then pass "$what"; else fail "$what (exit code $code, not $wanted)"; fi
}

# soon SECONDS COMMAND...: run COMMAND until it succeeds, for about SECONDS
soon() {
  tries=$(($1 * 5))
  shift
  while ! "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.2
  done
}

lines() { [ "$(wc -l <"$1" 2>/dev/null || echo 0)" -ge "$2" ]; }

# -- elections ----------------------------------------------------------------------------------------------------

check "a vacant office is vacant" 1 "$conch" elect "$name" --who
if [ "$code" != 1 ]; then
  exit 1 # no other check makes sense without this one
fi
check "an office is acquired and released" 0 "$conch" elect "$name" --wait 15s -- true
check "the command's exit code is passed on" 7 "$conch" elect "$name" --wait 15s -- sh -c 'exit 7'

"$conch" elect "$name" -- sh -c 'echo first; exec sleep 600' >"$folder/first" 2>"$folder/first.err" &
first=$!
children="$children $first"
if soon 15 lines "$folder/first" 1; then
  check "a taken office is not taken twice" 75 "$conch" elect "$name" --nonblock -- true
  check "the leader is shown" 0 "$conch" elect "$name" --who
  "$conch" elect "$name" -- sh -c 'echo second; exec sleep 600' >"$folder/second" 2>"$folder/second.err" &
  second=$!
  children="$children $second"
  soon 15 grep -q queued "$folder/second.err"
  kill "$first"
  if soon 5 lines "$folder/second" 1; then pass "the next in line takes over"; else fail "the next in line takes over"; fi

  if command -v etcdctl >/dev/null; then
    lease=$(sed -n 's/.*event=acquired .*lease=\([0-9a-f]*\).*/\1/p' "$folder/second.err")
    ETCDCTL_ENDPOINTS=${CONCH_ENDPOINTS:-${ETCDCTL_ENDPOINTS:-localhost:2379}} \
      etcdctl lease revoke "$lease" >/dev/null 2>"$folder/revoke.err"
    wait "$second"
    code=$?
    if [ "$code" = 70 ]; then
      pass "a revoked lease ends the command"
    else
      fail "a revoked lease ends the command (exit code $code, not 70)"
    fi
  else
    echo "SKIP a revoked lease ends the command (no etcdctl)"
  fi
else
  fail "a command runs as the leader"
fi
vacant() { "$conch" elect "$name" --who; [ $? = 1 ]; }
check "the office is vacant again" 0 soon 15 vacant

# -- semaphores ---------------------------------------------------------------------------------------------------

for slot in 1 2; do
  "$conch" sema "$name" --max 2 -- sh -c 'echo in; exec sleep 600' >"$folder/slot$slot" 2>"$folder/slot$slot.err" &
  children="$children $!"
done
if soon 15 lines "$folder/slot1" 1 && soon 15 lines "$folder/slot2" 1; then
  pass "two slots of two are held"
else
  fail "two slots of two are held"
fi
check "a third gets none" 75 "$conch" sema "$name" --max 2 --nonblock -- true
check "the holders are shown" 0 "$conch" sema "$name" --max 2 --who

# -- schedules ----------------------------------------------------------------------------------------------------

ticks_are_ok() { [ "$("$conch" cron history "$name" --json 2>/dev/null | grep -c '"state": "ok"')" -ge 1 ]; }

"$conch" cron add "$name" --schedule '@yearly' --paused -- true >/dev/null 2>"$folder/add.err"
if ! "$conch" cron run "$name" >/dev/null 2>&1; then
  "$conch" cron rm "$name" --quiet >/dev/null 2>&1
  CONCH_PREFIX=${CONCH_PREFIX:-/conch/v1}/$name
  export CONCH_PREFIX
  CONCH_HOST=$name "$conch" conchd --state-dir "$folder/state" --drain 1s >/dev/null 2>"$folder/conchd.err" &
  children="$children $!"
  soon 15 grep -q registered "$folder/conchd.err"
fi
check "a job is added" 0 "$conch" cron add "$name" --schedule '@every 2s' --overlap allow -- true
if soon 15 ticks_are_ok; then pass "a tick runs"; else fail "a tick runs"; fi
check "a job is removed" 0 "$conch" cron rm "$name"
sleep 1
"$conch" cron history "$name" --json >"$folder/history" 2>"$folder/history.err"
all=$(grep -c tick_unix "$folder/history")
different=$(sed -n 's/.*"tick_unix": \([0-9]*\).*/\1/p' "$folder/history" | sort -u | wc -l)
good=$(grep -c '"state": "ok"' "$folder/history")
if [ "$all" -ge 1 ] && [ "$all" = "$((different))" ] && [ "$all" = "$good" ]; then
  pass "each tick has exactly one result"
else
  fail "each tick has exactly one result ($all rows, $((different)) ticks, $good ok)"
fi

exit "$failed"
