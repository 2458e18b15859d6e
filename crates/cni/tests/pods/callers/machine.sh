# A machine of its own: called in new mount, network and process namespaces. Nothing of the host's is written.
# $1: a folder for everything; $2: the caller's script; CNI_BIN: the folder with the plugins.
set -eu
folder=$1
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /opt
mount --bind "$folder/etc-cni" /etc/cni
mkdir -p /opt/cni /var/lib/cni /run/flannel
cp -r "$CNI_BIN" /opt/cni/bin
cp "$folder/subnet.env" /run/flannel/
ip link set lo up

# Containers' control groups, known to the test that deletes them afterwards.
cgroup=podwire-test-$(basename "$folder")

# The image: a folder.
rootfs=$folder/rootfs
mkdir -p "$rootfs/bin" "$rootfs/www"
cp /usr/bin/busybox "$rootfs/bin/"
echo "from the container" > "$rootfs/www/index.html"

state() {
    echo "$1: veths $(ip -br link show type veth | wc -l), leases $(ls /var/lib/cni/networks/* | grep -c '\.[0-9]*\.' || true)," \
        "ports $(nft list map ip podwire-portmap ports 2> /dev/null | grep -c comment || true)"
}
fetch() { busybox timeout 5 busybox wget -q -O - "http://$1/"; }

. "$2"
