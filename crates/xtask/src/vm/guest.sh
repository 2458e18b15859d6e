# The machine's first process, among the host's files: mounts what is missing, runs job.sh, says how it ended, stops.
run=$1
export PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root

mount -t sysfs sys /sys
mount -t debugfs debug /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
echo podwire-vm > /proc/sys/kernel/hostname
ip link set lo up

# Modules. The kernel asks for what is asked of it. But when two ask at once, busybox tells the second that a module is
# there that is only about to be; so all of packet filtering and the links are there before anyone asks: 200 in a second.
echo /run/modprobe > /proc/sys/kernel/modprobe
cd "/lib/modules/$(uname -r)/kernel/net"
filters=$(ls netfilter/nf*.ko netfilter/x*.ko netfilter/*/ip_*.ko ipv4/netfilter/ip*.ko ipv6/netfilter/ip6*.ko)
/run/modprobe -a $(echo "$filters" | sed 's#.*/##; s#\.ko$##') br_netfilter dummy sctp sctp_diag tun veth vxlan
cd /

# The job has the second serial line for itself, and its bytes arrive as they are. Setting a line up again waits until
# all of them are out. What is written to kmsg, the kernel prints before the write returns.
stty -F /dev/ttyS1 raw -echo 115200
sh "$run/job.sh" < /dev/null > /dev/ttyS1 2>&1
ended=$?
stty -F /dev/ttyS1 raw -echo 115200
echo "<0>podwire-vm: job ended with $ended" > /dev/kmsg
echo b > /proc/sysrq-trigger
