#!/bin/busybox sh
# The machine's first process, in the initramfs: finds the host's files and hands over to guest.sh among them.
set -e
/bin/busybox --install -s /bin
# MODULES, RUN: folders of the host. LOAD: modules.
. /settings
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a $LOAD

# The host's root folder, read-only, under a layer in memory that takes whatever is written.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work /memory/root
root=/memory/root
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root $root

mkdir -p $root/lib/modules $root/proc $root/dev $root/sys $root/run
mount --bind "/host$MODULES" $root/lib/modules
mount --move /proc $root/proc
mount --move /dev $root/dev
mount -t tmpfs -o mode=0755 run $root/run
cp /bin/busybox $root/run/modprobe
exec switch_root -c /dev/console $root /bin/sh "$RUN/guest.sh" "$RUN"
