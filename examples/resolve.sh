# Asks the DNS server $2 for the name $1 without pause, and prints time and addresses whenever they change, until
# /tmp/stop appears.
rm -f /tmp/stop
last=none
while [ ! -e /tmp/stop ]; do
    now=$(dig +short +tries=1 +time=1 "$1" "@$2" | sort | tr '\n' ' ')
    [ "$now" = "$last" ] || echo "$(date +%s.%N) $now"
    last=$now
done
