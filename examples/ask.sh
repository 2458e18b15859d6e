# Asks URL from four loops at once until the file /tmp/stop appears; then says how many requests were answered and how
# many failed, and by which version.   usage: sh ask.sh URL
url=$1
ask() {
  ok=0 bad=0
  while [ ! -e /tmp/stop ]; do
    if curl -sf -m 5 "$url" >>"/tmp/seen.$1"; then ok=$((ok + 1)); else bad=$((bad + 1)); fi
  done
  echo "$ok $bad" >"/tmp/count.$1"
}
rm -f /tmp/stop /tmp/seen.* /tmp/count.*
for loop in 1 2 3 4; do ask $loop & done
wait
cat /tmp/count.* | { ok=0 bad=0; while read -r o b; do ok=$((ok + o)) bad=$((bad + b)); done; echo "$ok answered, $bad failed"; }
cat /tmp/seen.* | cut -d'|' -f2 | sort | uniq -c
rm -f /tmp/stop
