# Pings ADDRESS twenty times a second until the file /tmp/stop appears; then says how many answers came.
# usage: sh ping.sh ADDRESS
rm -f /tmp/stop
ping -q -i 0.05 "$1" &
ping=$!
touch /tmp/pinging
while [ ! -e /tmp/stop ]; do sleep 0.05; done
kill -INT "$ping"
wait "$ping"
rm -f /tmp/stop /tmp/pinging
